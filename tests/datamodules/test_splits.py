import numpy as np
import pytest

from fedlightning.datamodules.index_lists import ClientSplits
from fedlightning.errors import ConfigError


def arrays(*parts):
    return [np.array(part, np.int64) for part in parts]


@pytest.fixture
def splits():
    return ClientSplits(arrays([0, 2], [3]), arrays([1], []), arrays([], [0, 1]))


def test_table_counts_classes_by_client(splits):
    labels = np.array([1, 0, 1, 2])
    assert splits.table("train", labels, 3).tolist() == [[0, 2, 0], [0, 0, 1]]
    assert splits.table("val", labels, 3).tolist() == [[1, 0, 0], [0, 0, 0]]


def test_owner_is_the_client_that_holds_an_example(splits):
    assert splits.owner("train", 3) == 1
    assert splits.owner("test", 0) == 1


@pytest.mark.parametrize(
    "other",
    [
        ClientSplits(arrays([2, 0], [3]), arrays([1], []), arrays([], [0, 1])),
        ClientSplits(arrays([0], [2, 3]), arrays([1], []), arrays([], [0, 1])),
        ClientSplits(arrays([0, 2], [3]), arrays([], [1]), arrays([], [0, 1])),
        ClientSplits(arrays([0, 2], [3]), arrays([1], []), arrays([0, 1], [])),
    ],
)
def test_any_difference_changes_the_digest(splits, other):
    assert splits.digest() != other.digest()


def test_equal_lists_have_equal_digests(splits):
    copy = ClientSplits(arrays([0, 2], [3]), arrays([1], []), arrays([], [0, 1]))
    assert splits.digest() == copy.digest()


@pytest.mark.parametrize("client", [-1, 2])
def test_an_unknown_client_is_named(splits, client):
    with pytest.raises(ConfigError, match=rf"client must be in \[0, 2\), got {client}"):
        splits.of("train", client)


def test_an_unknown_split_is_named(splits):
    with pytest.raises(ConfigError, match=r"'training'\..*Did you mean 'train'"):
        splits.sizes("training")
