import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlightning.datamodules import Shards
from fedlightning.errors import ConfigError, DataError


def assign(per_client, num_clients, train, test, num_classes, seed=0):
    rng = np.random.default_rng(seed)
    return Shards(per_client).assign(train, test, num_clients, num_classes, rng)


def test_one_client_a_class_gets_the_class_in_dataset_order():
    train = np.array([1, 0, 1, 0])
    parts = assign(1, 2, train, train, num_classes=2)
    assert sorted(part.tolist() for part in parts.train) == [[0, 2], [1, 3]]


def test_shards_are_contiguous_pieces_of_a_class():
    train = np.arange(24) % 2
    parts = assign(1, 4, train, train, num_classes=2)
    pieces = sorted(part.tolist() for part in parts.train)
    assert pieces == [
        [0, 2, 4, 6, 8, 10],
        [1, 3, 5, 7, 9, 11],
        [12, 14, 16, 18, 20, 22],
        [13, 15, 17, 19, 21, 23],
    ]


def test_leftovers_go_one_each_to_the_first_shards():
    train = np.zeros(11, np.int64)
    parts = assign(1, 4, train, train, num_classes=1)
    assert sorted(part.tolist() for part in parts.train) == [
        [0, 1, 2],
        [3, 4, 5],
        [6, 7, 8],
        [9, 10],
    ]


def test_a_row_may_hold_a_label_twice():
    train = np.arange(40) % 2
    distinct = {
        len(np.unique(train[part]))
        for seed in range(20)
        for part in assign(2, 4, train, train, num_classes=2, seed=seed).train
    }
    assert distinct == {1, 2}


def test_test_data_has_the_same_labels_in_the_same_proportions():
    train, test = np.arange(400) % 10, np.arange(100) % 10
    parts = assign(2, 10, train, test, num_classes=10)
    for mine, mine_too in zip(parts.train, parts.test, strict=True):
        counts = np.bincount(train[mine], minlength=10)
        assert (counts == 4 * np.bincount(test[mine_too], minlength=10)).all()


def test_indices_are_in_the_order_of_the_row():
    train = np.arange(400) % 10
    for part in assign(4, 10, train, train, num_classes=10).train:
        pieces = part.reshape(4, 10)
        assert (np.diff(train[pieces], axis=1) == 0).all()
        assert (np.diff(pieces, axis=1) > 0).all()


@pytest.mark.parametrize(
    ("num_classes", "per_client", "distinct"),
    [(100, 100, 63.6), (100, 50, 39.7), (100, 10, 9.6), (10, 10, 6.5), (10, 5, 4.1), (10, 2, 1.9)],
)
def test_distinct_labels_of_a_hundred_clients(num_classes, per_client, distinct):
    train = np.arange(50_000) % num_classes
    counts = [
        len(np.unique(train[part]))
        for seed in range(3)
        for part in assign(per_client, 100, train, train[:10_000], num_classes, seed).train
    ]
    assert np.mean(counts) == pytest.approx(distinct, abs=0.12 if num_classes == 10 else 0.5)


@settings(max_examples=50, deadline=None)
@given(
    num_classes=st.integers(1, 6),
    shards_per_class=st.integers(1, 6),
    per_client=st.integers(1, 6),
    extra=st.integers(0, 40),
    seed=st.integers(0, 99),
)
def test_all_examples_are_dealt_once(num_classes, shards_per_class, per_client, extra, seed):
    num_clients = num_classes * shards_per_class
    size = num_classes * shards_per_class * per_client + extra
    labels = np.random.default_rng(seed).permutation(np.arange(size) % num_classes)
    parts = assign(per_client, num_clients, labels, labels, num_classes, seed)
    assert sorted(np.concatenate(parts.train).tolist()) == list(range(size))
    assert all(len(part) for part in parts.train)
    for mine, mine_too in zip(parts.train, parts.test, strict=True):
        assert set(labels[mine]) == set(labels[mine_too])


def test_sixty_shards_over_seven_classes_are_refused_with_the_nearest_values():
    train = np.arange(700) % 7
    with pytest.raises(DataError, match=r"60 shards .* 7 classes; nearest valid values: ") as error:
        assign(3, 20, train, train, num_classes=7)
    assert "per_client=7, or num_clients=14 or 21" in str(error.value)


def test_a_client_whose_class_is_missing_is_named():
    train = np.zeros(10, np.int64)
    with pytest.raises(DataError, match=r"client \d has 0 samples: class 1 has no example"):
        assign(1, 4, train, train, num_classes=2)


@pytest.mark.parametrize("value", [0, -1, 1.5, None, True, "2"])
def test_per_client_must_be_a_positive_integer(value):
    with pytest.raises(ConfigError, match="per_client must be"):
        Shards(value)


def test_sixty_thousand_samples_take_a_moment():
    train = np.arange(60_000) % 10
    start = time.perf_counter()
    assign(2, 10_000, train, train[:10_000], num_classes=10)
    assert time.perf_counter() - start < 1


def test_the_rule_divides_the_recorded_data_as_the_authors_did():
    """Ten classes of 20 examples in turn, 5 clients, 2 shards: whole classes, in row order."""
    train, test = np.arange(200) % 10, np.arange(40) % 10
    parts = assign(2, 5, train, test, num_classes=10)
    for mine, mine_too in zip(parts.train, parts.test, strict=True):
        first, second = train[mine[0]], train[mine[-1]]
        assert mine.tolist() == [*range(first, 200, 10), *range(second, 200, 10)]
        assert mine_too.tolist() == [*range(first, 40, 10), *range(second, 40, 10)]
