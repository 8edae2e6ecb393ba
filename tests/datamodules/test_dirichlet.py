import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlightning.datamodules import Dirichlet
from fedlightning.datamodules.partitions.base import check_assignment
from fedlightning.errors import ConfigError, DataError


def assign(partition, num_clients, train, test, num_classes, seed=0):
    return partition.assign(train, test, num_clients, num_classes, np.random.default_rng(seed))


def counts(labels, parts, num_classes):
    return np.array([np.bincount(labels[part], minlength=num_classes) for part in parts])


@settings(max_examples=60, deadline=None)
@given(
    alpha=st.sampled_from([1e-300, 1e-6, 0.1, 1.0, 1e3, 1e300]),
    num_clients=st.integers(1, 20),
    min_samples=st.integers(1, 5),
    spare=st.integers(0, 30),
    num_classes=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_it_always_ends_with_enough_for_everyone(
    alpha, num_clients, min_samples, spare, num_classes, seed
):
    size = num_clients * min_samples + spare
    labels = np.random.default_rng(seed).integers(num_classes, size=size)
    parts = assign(Dirichlet(alpha, min_samples), num_clients, labels, labels, num_classes, seed)
    check_assignment(parts, size, size, num_clients)
    assert min(len(part) for part in parts.train) >= min_samples
    assert sum(len(part) for part in parts.train) == size


@settings(max_examples=30, deadline=None)
@given(alpha=st.sampled_from([1e-3, 0.3, 5.0]), seed=st.integers(0, 99))
def test_test_data_are_divided_in_the_training_datas_proportions(alpha, seed):
    train, test = np.arange(600) % 3, np.arange(120) % 3
    parts = assign(Dirichlet(alpha, 2), 8, train, test, 3, seed)
    wanted = counts(train, parts.train, 3) / 5
    assert np.abs(counts(test, parts.test, 3) - wanted).max() <= 1


def test_a_client_has_no_test_class_that_it_does_not_train_on():
    train, test = np.arange(600) % 3, np.arange(60) % 3
    parts = assign(Dirichlet(0.05, 10), 20, train, test, 3)
    for mine, mine_too in zip(parts.train, parts.test, strict=True):
        assert set(test[mine_too]) <= set(train[mine])


def test_a_large_alpha_is_nearly_even():
    train = np.arange(10_000) % 2
    sizes = counts(train, assign(Dirichlet(1e4), 10, train, train, 2).train, 2)
    assert (np.abs(sizes - 500) < 50).all()


def test_a_small_alpha_leaves_most_of_a_class_with_one_client():
    train = np.arange(10_000) % 2
    sizes = counts(train, assign(Dirichlet(1e-3, 1), 10, train, train, 2).train, 2)
    assert (sizes.max(axis=0) > 4_500).all()


@pytest.mark.parametrize("min_samples", [None, 0])
def test_a_client_left_empty_is_named_unless_a_minimum_is_asked_for(min_samples):
    train = np.arange(1_000) % 10
    with pytest.raises(DataError, match=r"client \d+ has 0 samples; raise alpha or min_samples"):
        assign(Dirichlet(1e-6, min_samples), 20, train, train, 10)
    sizes = [len(part) for part in assign(Dirichlet(1e-6, 1), 20, train, train, 10).train]
    assert min(sizes) == 1


def test_of_ten_draws_that_are_too_uneven_the_best_is_mended():
    train = np.arange(1_350) % 10  # in one draw of three or so, somebody has nothing
    for seed in range(20):
        parts = assign(Dirichlet(0.08), 20, train, train, 10, seed)
        assert min(len(part) for part in parts.train) >= 10


def test_a_minimum_beyond_the_data_is_refused():
    train = np.arange(100) % 10
    with pytest.raises(DataError, match=r"min_samples=10 x 20 clients = 200 > 100 samples"):
        assign(Dirichlet(alpha=1.0), 20, train, train, 10)


@pytest.mark.parametrize("alpha", [0, -1, float("nan"), float("inf"), None, "1", True])
def test_alpha_must_be_positive_and_finite(alpha):
    with pytest.raises(ConfigError, match="alpha must be a finite number > 0"):
        Dirichlet(alpha=alpha)


@pytest.mark.parametrize("min_samples", [-1, 0.5, "many"])
def test_min_samples_must_be_a_whole_number(min_samples):
    with pytest.raises(ConfigError, match="min_samples must be"):
        Dirichlet(alpha=1, min_samples=min_samples)
