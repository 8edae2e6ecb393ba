"""Who is held out of training is a function of the seed, and costs nothing in a round."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedlightning import Federation
from fedlightning.core.seeding import Key
from fedlightning.datamodules import Digits, GeneratedClients, Shards
from fedlightning.datamodules.client_roles import AllBut, ClientRoles
from fedlightning.errors import ConfigError
from fedlightning.federation.sampling import ClientSampler, FixedCohorts, UniformSampler
from tests.toys import data


def digits(**kwargs):
    return Digits(**{"num_clients": 20, "partition": Shards(2), "seed": 3, **kwargs})


def many(held_out):
    return GeneratedClients(
        lambda client, split: np.zeros((2, 4)), 1_000_000, 2, 2, seed=0, held_out_clients=held_out
    )


@given(st.integers(1, 40).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1)))))
def test_all_but_some_are_the_others_in_order(case):
    number, left_out = case
    clients = AllBut(number, np.array(sorted(left_out), np.int64))
    expected = [client for client in range(number) if client not in left_out]
    assert list(clients) == expected
    assert len(clients) == len(expected)
    assert clients[:2] == expected[:2]
    assert [client in clients for client in range(-1, number + 1)] == [
        client in expected for client in range(-1, number + 1)
    ]


def test_held_out_and_training_clients_are_all_clients_once():
    clients = digits(held_out_clients=7)
    assert len(clients.held_out_ids) == 7
    assert sorted([*clients.held_out_ids, *clients.training_clients]) == list(range(20))
    assert [client for client in range(20) if clients.is_held_out(client)] == list(
        clients.held_out_ids
    )


def test_who_is_held_out_follows_from_the_seed():
    chosen = [tuple(digits(held_out_clients=5, seed=seed).held_out_ids) for seed in range(5)]
    assert chosen == [
        tuple(digits(held_out_clients=5, seed=seed).held_out_ids) for seed in range(5)
    ]
    assert len(set(chosen)) == 5


def test_nobody_is_held_out_by_default():
    clients = digits()
    assert clients.training_clients == range(20)
    assert clients.held_out_digest() == "0"


@pytest.mark.parametrize(("share", "count"), [(0.0, 0), (0.25, 5), (0.01, 1), (0.99, 19)])
def test_a_float_is_a_share_that_leaves_one_to_train(share, count):
    clients = digits(held_out_clients=share)
    assert clients.held_out_ids.tolist() == digits(held_out_clients=count).held_out_ids.tolist()
    assert len(clients.held_out_ids) == count


@pytest.mark.parametrize("value", [20, 25, -1, 1.0, -0.1, float("nan"), True, "3", None])
def test_a_number_that_cannot_be_is_refused(value):
    with pytest.raises(ConfigError, match="held_out_clients"):
        digits(held_out_clients=value)


def test_the_partition_does_not_notice():
    plain, other = digits(val_fraction=0.2), digits(val_fraction=0.2, held_out_clients=5)
    plain.setup()
    other.setup()
    assert plain.partition_digest() == other.partition_digest()


def test_the_loader_of_training_tasks_leaves_them_out():
    clients = data(held_out_clients=2, seed=0)
    clients.setup()
    tasks = [task.client for task in clients.train_dataloader()]
    assert tasks == list(clients.training_clients)
    assert len(tasks) == 2


def test_evaluation_takes_both():
    assert digits(held_out_clients=5).evaluated_clients == range(20)


def test_eval_clients_is_the_size_of_a_sample_of_each():
    clients = digits(held_out_clients=6, eval_clients=4)
    evaluated = list(clients.evaluated_clients)
    assert evaluated == sorted(set(evaluated))
    assert sum(clients.is_held_out(client) for client in evaluated) == 4
    assert len(evaluated) == 8
    few = digits(held_out_clients=2, eval_clients=4)
    assert sum(few.is_held_out(client) for client in few.evaluated_clients) == 2


def test_of_very_many_a_sample_of_each_is_evaluated():
    clients = many(20_000)
    with pytest.warns(UserWarning, match="held-out clients|980,000 clients"):
        evaluated = clients.evaluated_clients
    assert sum(clients.is_held_out(client) for client in evaluated) == 1000
    assert len(evaluated) == 2000


def test_no_cohort_ever_has_one_and_everybody_else_gets_a_turn():
    clients = digits(held_out_clients=5)
    federation = Federation(cohort_size=4)
    seen = set()
    for round_ in range(60):
        key = Key(0, "cohort", round=round_)
        cohort = federation.cohort(key, 20, 4, clients.training_clients)
        assert len(set(cohort)) == 4
        seen |= set(cohort)
    assert seen == set(clients.training_clients)


def test_without_held_out_clients_cohorts_are_what_they_were():
    key = Key(5, "cohort", round=2)
    expected = UniformSampler().cohort(key, 20, 6)
    assert Federation().cohort(key, 20, 6, digits().training_clients) == expected


def test_a_cohort_of_a_million_clients_costs_what_the_cohort_does():
    clients = many(1000).training_clients
    tracemalloc.start()
    cohort = Federation(cohort_size=50).cohort(Key(0, "cohort"), 1_000_000, 50, clients)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(set(cohort)) == 50
    assert peak < 200_000


def test_a_sampler_that_names_clients_must_not_name_those():
    clients = digits(held_out_clients=5)
    one, other = clients.training_clients[0], int(clients.held_out_ids[0])
    fixed = Federation(sampler=FixedCohorts([[one], [other]]))
    key = Key(0, "cohort")
    assert fixed.cohort(key, 20, 1, clients.training_clients) == (one,)
    with pytest.raises(ConfigError, match=rf"FixedCohorts chose client {other} .*anonymous=True"):
        fixed.cohort(key.at(round=1), 20, 1, clients.training_clients)


def test_a_sampler_of_ones_own_may_choose_among_those_that_train():
    class First(ClientSampler):
        anonymous = True

        def cohort(self, key, population, size):
            assert population == 15
            return tuple(range(size))

    clients = digits(held_out_clients=5)
    chosen = Federation(sampler=First()).cohort(Key(0, "cohort"), 20, 3, clients.training_clients)
    assert chosen == tuple(clients.training_clients[:3])


def test_other_clients_are_evaluated_within_a_block_and_the_same_as_before_after_it():
    clients = digits(held_out_clients=5)
    clients.setup()
    before = clients.evaluated_clients
    with clients.evaluating([2, 7]):
        assert [task.client for task in clients.test_dataloader()] == [2, 7]
        with clients.evaluating([3]):
            assert clients.evaluated_clients == [3]
        assert clients.evaluated_clients == [2, 7]
    assert clients.evaluated_clients == before


def test_the_clients_are_the_same_as_before_after_a_block_that_fails():
    clients = digits()
    with pytest.raises(KeyError), clients.evaluating([2, 7]):
        raise KeyError
    assert clients.evaluated_clients == range(20)


def test_a_client_that_does_not_exist_is_not_evaluated():
    with pytest.raises(ConfigError, match="no client 20 in Digits, whose clients are 0 to 19"):
        digits().evaluating([3, 20])


def test_roles_need_no_data():
    roles = ClientRoles(20, held_out_clients=5, eval_clients=4, seed=3)
    clients = digits(held_out_clients=5, eval_clients=4)
    assert roles.held_out_ids.tolist() == clients.held_out_ids.tolist()
    assert roles.evaluated_clients == clients.evaluated_clients


def test_the_streams_of_other_purposes_have_not_moved():
    purposes = ("partition", "cohort", "fit", "personalize", "evaluate")
    assert [Key(1, purpose).integer() % 10_000 for purpose in purposes] == [
        497,
        224,
        9991,
        8758,
        5726,
    ]
