import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedlightning.datamodules.index_lists import IndexLists

LISTS = st.lists(st.lists(st.integers(0, 2**40), max_size=5), max_size=6)


@given(lists=LISTS)
def test_lists_come_out_as_they_went_in(lists):
    ragged = IndexLists.of([np.array(part, np.int64) for part in lists])
    assert [part.tolist() for part in ragged] == lists
    assert [ragged.size(client) for client in range(len(lists))] == [len(part) for part in lists]
    assert all(part.dtype == np.int64 for part in ragged)


def test_small_indices_take_four_bytes():
    assert IndexLists(np.arange(5), np.array([5])).flat.dtype == np.int32
    assert IndexLists(np.array([2**31]), np.array([1])).flat.dtype == np.int64


def test_a_million_lists_are_two_arrays():
    ragged = IndexLists(np.arange(1_000_000), np.ones(1_000_000, np.int64))
    assert ragged.flat.nbytes + ragged.edges.nbytes < 9_000_000
    assert ragged[-1].tolist() == [999_999]


def test_slices_are_lists_of_arrays():
    ragged = IndexLists(np.arange(4), np.array([1, 2, 1]))
    assert [part.tolist() for part in ragged[1:]] == [[1, 2], [3]]


def test_there_is_no_client_beyond_the_last():
    with pytest.raises(IndexError):
        IndexLists(np.arange(4), np.array([4]))[1]


def test_the_owner_of_the_first_index_after_an_empty_list():
    assert IndexLists(np.array([5, 6]), np.array([0, 1, 0, 1])).owner(6) == 3
