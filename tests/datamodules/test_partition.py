import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlightning.datamodules import IID, Assignment, Classes, Dirichlet, Partition, Shards
from fedlightning.datamodules.partitions.base import by_owner, check_assignment
from fedlightning.errors import DataError

NUM_CLASSES = 5


def labels_of(seed, size):
    return np.random.default_rng(seed).permutation(np.arange(size) % NUM_CLASSES)


def assign(partition, num_clients, *, seed=0, num_train=200, num_test=60):
    train, test = labels_of(1, num_train), labels_of(2, num_test)
    rng = np.random.default_rng(seed)
    return partition.assign(train, test, num_clients, NUM_CLASSES, rng)


RULES = {
    "IID": (IID(), 7),
    "Shards": (Shards(per_client=2), 10),
    "Dirichlet": (Dirichlet(alpha=0.3, min_samples=3), 10),
    "Dirichlet, mended": (Dirichlet(alpha=1e-3, min_samples=5), 20),
    "Classes": (Classes(per_client=2), 7),
}


@pytest.fixture(params=RULES.values(), ids=RULES.keys())
def rule(request):
    return request.param


def same(one, other):
    return all(
        np.array_equal(a, b)
        for a, b in zip([*one.train, *one.test], [*other.train, *other.test], strict=True)
    )


def test_every_rule_gives_each_example_to_exactly_one_client(rule):
    parts = assign(*rule)
    assert sorted(np.concatenate(parts.train).tolist()) == list(range(200))
    assert sorted(np.concatenate(parts.test).tolist()) == list(range(60))


def test_every_rule_serves_every_client(rule):
    parts = assign(*rule)
    assert len(parts.train) == len(parts.test) == rule[1]
    assert all(len(part) for part in parts.train)


def test_every_rule_gives_int64_indices(rule):
    parts = assign(*rule)
    assert {part.dtype for part in [*parts.train, *parts.test]} == {np.dtype(np.int64)}


def test_same_seed_same_partition(rule):
    assert same(assign(*rule, seed=3), assign(*rule, seed=3))


def test_another_seed_another_partition(rule):
    assert not same(assign(*rule, seed=3), assign(*rule, seed=4))


def test_every_rule_survives_an_empty_test_set(rule):
    assert all(len(part) == 0 for part in assign(*rule, num_test=0).test)


def test_repr_shows_the_settings():
    assert repr(Dirichlet(alpha=0.5)) == "Dirichlet(alpha=0.5, min_samples=None)"
    assert repr(IID()) == "IID()"


@settings(max_examples=40, deadline=None)
@given(
    num_train=st.integers(1, 80),
    num_test=st.integers(0, 30),
    num_clients=st.integers(1, 80),
    seed=st.integers(0, 99),
)
def test_iid_sizes_differ_by_one_at_most(num_train, num_test, num_clients, seed):
    num_clients = min(num_clients, num_train)
    parts = assign(IID(), num_clients, seed=seed, num_train=num_train, num_test=num_test)
    for sizes in ([len(p) for p in parts.train], [len(p) for p in parts.test]):
        assert max(sizes) - min(sizes) <= 1
    check_assignment(parts, num_train, num_test, num_clients)


def test_iid_parts_are_ascending():
    assert all((np.diff(part) > 0).all() for part in assign(IID(), 5).train)


def test_by_owner_leaves_out_what_is_nobodys():
    parts = by_owner(np.array([2, -1, 0, 2]), 3)
    assert [part.tolist() for part in parts] == [[2], [], [0, 3]]


def test_a_users_rule_needs_only_assign():
    class Halves(Partition):
        def assign(self, train_labels, test_labels, num_clients, num_classes, rng):
            return Assignment(np.array_split(np.arange(4), 2), np.array_split(np.arange(2), 2))

    assert [part.tolist() for part in assign(Halves(), 2).train] == [[0, 1], [2, 3]]
    assert repr(Halves()) == "Halves()"


NONE = np.array([], np.int64)


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ([[0, 1]], r"over 1 clients, num_clients is 2"),
        ([[0, 1], [1, 2]], r"training sample 1 away 2 times"),
        ([[0, 1], [3]], r"training sample 3 away, the dataset has 3"),
        ([[0, 1], [-1]], r"training sample -1 away"),
        ([[0.0], [1.0]], r"must be integers, got float64"),
        ([[0, 1], []], r"client 1 has 0 samples"),
    ],
)
def test_an_unusable_assignment_is_refused(train, message):
    parts = Assignment([np.array(part) for part in train], [NONE] * len(train))
    with pytest.raises(DataError, match=message):
        check_assignment(parts, num_train=3, num_test=0, num_clients=2)
