import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlightning.datamodules import IID, Assignment, Partition, Shards, TensorExamples
from fedlightning.datamodules.pooled import count_classes, divide, hold_out
from fedlightning.errors import ConfigError, DataError


def pool(labels):
    return TensorExamples(np.zeros((len(labels), 1)), labels)


def apply(partition, train, num_clients, num_classes, test=()):
    rng = np.random.default_rng(0)
    return divide(train, pool(np.array(test, np.int64)), partition, num_clients, num_classes, rng)


def test_more_clients_than_samples_are_refused():
    with pytest.raises(DataError, match="2000 clients > 1000 samples"):
        apply(IID(), pool(np.arange(1000) % 10), 2000, 10)


def test_a_rule_that_needs_labels_refuses_data_without_classes():
    with pytest.raises(ConfigError, match=r"partition=Shards\(per_client=2\) needs one integer"):
        apply(Shards(2), pool(np.linspace(0, 1, 20)), 2, 0)


def test_declared_classes_are_no_labels():
    with pytest.raises(
        ConfigError, match="needs one integer label per example, but this data has none"
    ):
        apply(Shards(1), TensorExamples(np.zeros((4, 1))), 2, 2)


def test_a_label_outside_the_classes_still_gets_an_owner():
    parts = apply(Shards(1), pool(np.array([0, 1, 2, -100, 7, 2])), 3, 3)
    assert sorted(np.concatenate(parts.train).tolist()) == [0, 1, 2, 3, 4, 5]


def test_an_unusable_rule_is_refused():
    class Same(Partition):
        def assign(self, train_labels, test_labels, num_clients, num_classes, rng):
            return Assignment([np.array([0])] * 2, [np.array([], int)] * 2)

    with pytest.raises(DataError, match="training sample 0 away 2 times"):
        apply(Same(), pool([0, 1]), 2, 2)


def test_classes_are_counted_over_both_pools():
    assert count_classes(pool([0, 1]), pool([4])) == 5
    assert count_classes(pool([0, 1]), pool(np.array([], np.int64))) == 2


@pytest.mark.parametrize("labels", [None, [0.5, 1.0], [[0, 1], [1, 1]]])
def test_data_without_one_integer_label_an_example_have_no_classes(labels):
    unlabelled = TensorExamples(np.zeros((2, 1)), labels)
    assert count_classes(unlabelled, unlabelled) == 0


@settings(max_examples=50, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=6),
    fraction=st.floats(0, 1, exclude_max=True),
    seed=st.integers(0, 99),
)
def test_held_out_examples_come_from_the_clients_own(sizes, fraction, seed):
    given_parts = [100 * client + np.arange(n)[::-1] for client, n in enumerate(sizes)]
    parts = Assignment(given_parts, [np.array([], int)] * len(sizes))
    splits = hold_out(parts, fraction, np.random.default_rng(seed))
    for whole, train, val in zip(given_parts, splits.train, splits.val, strict=True):
        assert sorted([*train, *val]) == sorted(whole)
        assert len(train) >= 1
        assert (np.diff(train) < 0).all()
        assert (np.diff(val) < 0).all()
        assert abs(len(val) - fraction * len(whole)) <= 1


def test_nothing_is_held_out_of_a_single_example():
    parts = Assignment([np.array([7])], [np.array([], int)])
    assert hold_out(parts, 0.9, np.random.default_rng(0)).sizes("val").tolist() == [0]
