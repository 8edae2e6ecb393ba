import json
import pickle
from collections import Counter

import numpy as np
import pytest

from fedlightning import FedAvg, PersonalizationCallback
from fedlightning.core.seeding import Key
from fedlightning.datamodules import GeneratedClients, PartitionFile
from fedlightning.errors import CheckpointError, ConfigError, DataError, FederationError
from tests.toys import fit, net

MILLION = 1_000_000


def made(client, split):
    """Return client + 1 examples at most 10, whose inputs name them."""
    n = min(client + 1, 10)
    inputs = np.zeros((n, 4), np.float32)
    inputs[:, 0], inputs[:, 1], inputs[:, 2] = client, np.arange(n), split == "test"
    return inputs, np.arange(n) % 3


def clients(examples=made, num_clients=MILLION, **options):
    data = GeneratedClients(examples, num_clients, **{"seed": 0, "num_classes": 3, **options})
    data.setup()
    return data


def seen(data, client, split, **options):
    return [int(v) for x, _ in data.batches(client, split, **options) for v in x[:, 1]]


def test_a_clients_batches_are_what_the_function_gives():
    data = clients(batch_size=4)
    batches = list(data.batches(999_999, "train", key=Key(0, "fit")))
    assert [len(labels) for _, labels in batches] == [4, 4, 2]
    assert {int(value) for inputs, _ in batches for value in inputs[:, 0]} == {999_999}
    assert sorted(seen(data, 999_999, "train", key=Key(0, "fit"))) == list(range(10))
    assert seen(data, 999_999, "test") == list(range(10))


@pytest.mark.parametrize("size", [None, lambda client: min(client + 1, 10)])
def test_sizes_are_counted_or_told(size):
    data = clients(num_train=size, num_test=size, val_fraction=0.2)
    sizes = [[data.num_examples(c, s) for s in ("train", "val", "test")] for c in (0, 4, 9)]
    assert sizes == [[1, 0, 1], [4, 1, 5], [8, 2, 10]]


def test_held_out_examples_are_the_clients_own_and_always_the_same():
    data, again = clients(val_fraction=0.3), clients(val_fraction=0.3)
    train, val = seen(data, 77, "train"), seen(data, 77, "val")
    assert (len(train), len(val)) == (7, 3)
    assert sorted(train + val) == list(range(10))
    assert val == seen(again, 77, "val") != seen(again, 78, "val")
    assert data.labels(77, "val").tolist() == [index % 3 for index in val]


def test_nothing_is_made_for_clients_that_are_not_asked_for():
    calls = Counter()

    def counted(client, split):
        calls[client, split] += 1
        return made(client, split)

    data = clients(counted, num_train=lambda client: min(client + 1, 10))
    for _ in range(3):
        list(data.batches(500, "train"))
    assert data.num_examples(9_999) == 10
    assert calls == {(0, "train"): 1, (500, "train"): 1}


def test_only_the_last_clients_stay_in_memory():
    data = clients(cache_size=2)
    for client in (1, 2, 3, 2):
        list(data.batches(client, "train"))
    assert list(data.client_data._pools) == [(3, "train"), (2, "train")]


@pytest.mark.parametrize(
    ("examples", "options", "error", "message"),
    [
        (lambda c, s: 1 / 0, {}, FederationError, r"client 0: .*\(0, 'train'\) raised ZeroDiv"),
        (lambda c, s: (1, 2, 3), {}, DataError, r"must return \(inputs, labels\), got 3 values"),
        (lambda c, s: ("a", "b"), {}, DataError, "client 0: .*not numbers"),
        (made, {"num_train": 2}, DataError, "returned 1 examples, num_train says 2"),
        (made, {"batch_size": 2, "drop_last": True}, DataError, "at least 2 are needed"),
        (lambda c, s: (np.ones((1, 4)), [5]), {}, DataError, r"client 0, sample 0: label 5 not in"),
        (lambda c, s: np.full((1, 4), np.nan), {}, DataError, "client 0, sample 0: non-finite"),
        (3, {}, ConfigError, "examples must be a function of client and split, got 3"),
        (made, {"num_train": 0}, ConfigError, "num_train must be an integer >= 1, got 0"),
        (made, {"cache_size": 0}, ConfigError, "cache_size must be an integer >= 1, got 0"),
    ],
)
def test_what_cannot_be_used_is_refused(examples, options, error, message):
    with pytest.raises(error, match=message):
        clients(examples, **options)


def test_a_client_that_does_not_exist_is_named():
    with pytest.raises(ConfigError, match=r"client must be in \[0, 5\), got 5"):
        clients(num_clients=5).num_examples(5)


def test_inputs_alone_are_data_without_labels():
    data = clients(lambda client, split: np.ones((2, 4)), num_classes=0)
    assert next(data.batches(3, "test")).shape == (2, 4)
    with pytest.raises(DataError, match="GeneratedClients has no labels"):
        data.labels(3)


def test_the_files_of_a_run_do_not_grow_with_the_population(tmp_path):
    data = clients()
    data.write_partition(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["partition.json"]
    assert json.loads((tmp_path / "partition.json").read_text())["num_clients"] == MILLION
    assert data.partition_table().shape == (MILLION, 0)
    with pytest.raises(DataError, match="no list of all examples: they are made by made"):
        data.save_partition(tmp_path / "all.json")
    rule = PartitionFile(str(tmp_path / "partition.json"))
    with pytest.raises(DataError):
        rule.assign(np.zeros(3), np.zeros(1), 2, 0, np.random.default_rng(0))


def test_other_data_have_another_digest():
    digests = {
        clients().partition_digest(),
        clients(num_clients=5).partition_digest(),
        clients(val_fraction=0.1).partition_digest(),
        clients(lambda c, s: (np.zeros((1, 4)), [2])).partition_digest(),
    }
    assert len(digests) == 4
    assert clients().partition_digest() == clients().partition_digest()


def test_a_set_up_module_can_be_sent_to_another_process():
    data = pickle.loads(pickle.dumps(clients()))
    assert seen(data, 5, "train") == list(range(6))


def test_a_run_over_a_million_clients_leaves_a_small_record(tmp_path):
    personal = PersonalizationCallback(epochs=1)
    built = fit(
        net(), FedAvg(), cohort=5, folder=tmp_path, callbacks=[personal],
        datamodule=clients(eval_clients=4),
    )  # fmt: skip
    assert built.global_step == 10
    assert len(personal.records) == 4
    assert "global/acc" in built.callback_metrics
    assert sum(p.stat().st_size for p in tmp_path.rglob("*") if p.is_file()) < 400_000


def test_a_run_does_not_go_on_with_another_function(tmp_path):
    fit(net(), FedAvg(), cohort=3, folder=tmp_path, datamodule=clients(eval_clients=2))
    other = clients(lambda c, s: (made(c, s)[0], (made(c, s)[1] + 1) % 3), eval_clients=2)
    with pytest.raises(CheckpointError, match="partition: "):
        fit(net(), FedAvg(), cohort=3, datamodule=other, ckpt=next(tmp_path.rglob("last.ckpt")))


def fails_from(first, n=3):
    """Return a function that makes the examples of the clients before ``first``."""

    def examples(client, split):
        if client >= first and split == "train":
            raise OSError("no such file")
        return np.zeros((n, 4), np.float32), np.arange(n) % 3

    return examples


@pytest.mark.parametrize("size", [lambda c: 1 / 0, lambda c: -1, lambda c: "many"])
def test_a_size_that_cannot_be_had_names_the_client(size):
    with pytest.raises((DataError, FederationError), match=r"client 0: num_train\(0\) "):
        clients(num_train=size)


def test_a_client_that_cannot_be_made_is_named_and_falls_under_the_policy():
    def third_is_broken():
        return clients(fails_from(2), num_clients=3, num_train=3)

    with pytest.raises(FederationError, match=r"client 2, .*\(2, 'train'\) raised OSError: no s"):
        fit(net(), FedAvg(), datamodule=third_is_broken())
    with pytest.warns(UserWarning, match="client 2, round 0: .* raised OSError.*skipped"):
        built = fit(
            net(), FedAvg(), rounds=1, federation={"on_client_failure": "skip"},
            datamodule=third_is_broken(),
        )  # fmt: skip
    assert built.callback_metrics["clients/succeeded"] == 2
