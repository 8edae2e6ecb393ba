import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlightning.datamodules import Classes
from fedlightning.errors import ConfigError, DataError


def assign(per_client, num_clients, train, test, num_classes, seed=0):
    rng = np.random.default_rng(seed)
    return Classes(per_client).assign(train, test, num_clients, num_classes, rng)


@settings(max_examples=50, deadline=None)
@given(
    num_classes=st.integers(1, 6),
    per_client=st.integers(1, 6),
    num_clients=st.integers(1, 20),
    seed=st.integers(0, 99),
)
def test_every_client_has_exactly_so_many_classes(num_classes, per_client, num_clients, seed):
    per_client = min(per_client, num_classes)
    labels = np.arange(30 * num_classes) % num_classes
    parts = assign(per_client, num_clients, labels, labels, num_classes, seed)
    for mine, mine_too in zip(parts.train, parts.test, strict=True):
        assert len(np.unique(labels[mine])) == per_client
        assert set(labels[mine]) == set(labels[mine_too])
    holders = np.array(
        [sum(label in labels[part] for part in parts.train) for label in range(num_classes)]
    )
    assert holders.max() - holders.min() <= 1
    given_away = np.concatenate(parts.train)
    assert len(np.unique(given_away)) == len(given_away)
    if per_client * num_clients >= num_classes:
        assert len(given_away) == len(labels)


def test_too_few_clients_leave_classes_out():
    labels = np.arange(40) % 4
    parts = assign(1, 2, labels, labels, num_classes=4)
    assert sum(len(part) for part in parts.train) == 20


def test_classes_without_examples_are_nobodys():
    labels = np.array([0, 2] * 6)
    parts = assign(2, 3, labels, labels, num_classes=4)
    assert [sorted(set(labels[part].tolist())) for part in parts.train] == [[0, 2]] * 3


def test_more_classes_than_there_are_is_refused():
    labels = np.arange(30) % 3
    with pytest.raises(DataError, match=r"per_client=5 > 3 classes"):
        assign(5, 2, labels, labels, num_classes=3)


def test_a_class_too_small_for_its_clients_is_named():
    labels = np.array([0] * 20 + [1])
    with pytest.raises(DataError, match=r"class 1 has 1 samples for 4 clients"):
        assign(2, 4, labels, labels, num_classes=2)


def test_per_client_must_be_positive():
    with pytest.raises(ConfigError, match="per_client must be an integer >= 1, got 0"):
        Classes(0)
