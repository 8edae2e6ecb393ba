import json

import numpy as np
import pytest

from fedlightning.datamodules import Assignment, FederatedArrays, PartitionFile, Shards
from fedlightning.datamodules.partitions.from_file import write_partition_file
from fedlightning.errors import DataError, EnvironmentFailure


def write(path, **changes):
    content = {
        "version": 1,
        "num_train": 4,
        "num_test": 2,
        "train": [[2, 0], [1, 3]],
        "test": [[1], [0]],
    }
    content.update(changes)
    path.write_text(json.dumps(content))
    return PartitionFile(str(path))


def assign(partition, num_train=4, num_test=2, num_clients=2):
    rng = np.random.default_rng(0)
    return partition.assign(np.zeros(num_train), np.zeros(num_test), num_clients, 0, rng)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "partition.json"


def test_it_keeps_the_stored_order(path):
    parts = assign(write(path))
    assert [part.tolist() for part in parts.train] == [[2, 0], [1, 3]]
    assert [part.tolist() for part in parts.test] == [[1], [0]]


def test_what_is_written_is_read_back(path):
    parts = Assignment([np.array([3, 1])], [np.array([0])])
    write_partition_file(path, parts, num_train=4, num_test=2, extra={"dataset": "Toy"})
    assert assign(PartitionFile(str(path)), num_clients=1).train[0].tolist() == [3, 1]


def test_a_saved_partition_gives_the_same_data_module(path):
    arrays = np.arange(40.0)[:, None], np.arange(40) % 4
    options = {"num_clients": 4, "val_fraction": 0.2, "seed": 5}
    data = FederatedArrays(arrays, arrays, partition=Shards(2), **options)
    data.setup()
    data.save_partition(path)
    again = FederatedArrays(arrays, arrays, partition=PartitionFile(str(path)), **options)
    again.setup()
    assert again.partition_digest() == data.partition_digest()


def test_a_file_for_other_data_is_refused(path):
    with pytest.raises(DataError, match="partition covers 50000 samples, dataset has 60000"):
        assign(write(path, num_train=50_000), num_train=60_000)


def test_another_number_of_clients_is_refused(path):
    with pytest.raises(DataError, match=r"over 2 clients, num_clients is 3"):
        assign(write(path), num_clients=3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, "version must be 1, got 2"),
        ({"train": [[0, 1], [1, 2]]}, "training sample 1 away 2 times"),
        ({"train": [[0], [4]]}, "training sample 4 away, the dataset has 4"),
        ({"train": [[0], [-1]]}, "train of client 1 holds -1"),
        ({"train": [[0], [True]]}, "train of client 1 holds True"),
        ({"train": [[0], [1.0]]}, "train of client 1 holds 1.0"),
        ({"train": [[0], ["1"]]}, "train of client 1 holds '1'"),
        ({"test": [[2**70], []]}, "test of client 0 holds"),
        ({"train": {"0": [1]}}, "train must be a list"),
        ({"test": [0, 1]}, "test must be a list"),
        ({"train": [[0, 1], []]}, "client 1 has 0 samples"),
    ],
)
def test_a_wrong_content_is_named(path, changes, message):
    with pytest.raises(DataError, match=message) as error:
        assign(write(path, **changes))
    assert "partition.json" in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [("[1]", "must be a mapping"), ("{", "not valid JSON"), ("[" * 100_000, "not valid JSON")],
)
def test_a_file_that_is_no_partition_is_refused(path, text, message):
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        assign(PartitionFile(str(path)))


def test_a_missing_file_is_named(path):
    with pytest.raises(DataError, match=r"partition\.json cannot be read: No such file"):
        assign(PartitionFile(str(path)))


def test_a_path_that_cannot_be_written_is_an_environment_failure(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentFailure, match="cannot write"):
        write_partition_file(tmp_path / "file" / "p.json", Assignment([], []), 0, 0)


def test_a_folder_or_a_device_is_no_partition_file(tmp_path):
    for path in (tmp_path, "/dev/null"):
        with pytest.raises(DataError, match="is not a regular file"):
            PartitionFile(str(path)).assign(
                np.zeros(3), np.zeros(1), 2, 0, np.random.default_rng(0)
            )
