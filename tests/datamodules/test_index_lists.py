import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedlightning.datamodules.index_lists import ClientSplits, IndexLists
from fedlightning.errors import ConfigError

LISTS = st.lists(st.lists(st.integers(0, 2**40), max_size=5), max_size=6)


@given(lists=LISTS)
def test_lists_come_out_as_they_went_in(lists):
    stored = IndexLists.of([np.array(part, np.int64) for part in lists])
    assert [part.tolist() for part in stored] == lists
    assert [stored.size(client) for client in range(len(lists))] == [len(part) for part in lists]
    assert all(part.dtype == np.int64 for part in stored)


def test_small_indices_take_four_bytes():
    assert IndexLists(np.arange(5), np.array([5])).flat.dtype == np.int32
    assert IndexLists(np.array([2**31]), np.array([1])).flat.dtype == np.int64


def test_a_million_lists_are_two_arrays():
    stored = IndexLists(np.arange(1_000_000), np.ones(1_000_000, np.int64))
    assert stored.flat.nbytes + stored.edges.nbytes < 9_000_000
    assert stored[-1].tolist() == [999_999]


def test_slices_are_stored():
    stored = IndexLists(np.arange(4), np.array([1, 2, 1]))
    assert [part.tolist() for part in stored[1:]] == [[1, 2], [3]]


def test_there_is_no_client_beyond_the_last():
    with pytest.raises(IndexError):
        IndexLists(np.arange(4), np.array([4]))[1]


def test_the_owner_of_the_first_index_after_an_empty_list():
    assert IndexLists(np.array([5, 6]), np.array([0, 1, 0, 1])).owner(6) == 3


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
