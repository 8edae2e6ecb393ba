import numpy as np
import pytest
import torch

from fedlightning.datamodules import TensorExamples
from fedlightning.errors import DataError

CPU = torch.device("cpu")


def batches(pool, rows, batch_size=2, drop_last=False, device=CPU):
    return list(
        pool.batches(torch.tensor(rows), batch_size, drop_last=drop_last, device=device, key=None)
    )


def test_batches_follow_the_rows():
    pool = TensorExamples(torch.arange(10).view(5, 2), [0, 1, 2, 3, 4])
    got = [(x.tolist(), y.tolist()) for x, y in batches(pool, [4, 0, 3])]
    assert got == [([[8, 9], [0, 1]], [4, 0]), ([[6, 7]], [3])]


def test_drop_last_leaves_the_short_batch_out():
    pool = TensorExamples(torch.arange(5), torch.arange(5))
    assert [len(y) for _, y in batches(pool, [0, 1, 2, 3, 4], drop_last=True)] == [2, 2]


def test_without_labels_a_batch_is_the_inputs():
    pool = TensorExamples(torch.arange(5))
    assert pool.labels is None
    assert [batch.tolist() for batch in batches(pool, [1, 2])] == [[1, 2]]


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.float32, np.float64])
def test_inputs_keep_their_dtype(dtype):
    inputs = np.array([[1], [2]], dtype)
    assert TensorExamples(inputs).inputs.numpy().dtype == dtype


@pytest.mark.parametrize(
    ("labels", "dtype"),
    [([1, 0], np.int64), (np.array([1, 0], np.uint8), np.int64), ([0.5, 1.5], np.float64)],
)
def test_integer_labels_become_int64_and_others_stay(labels, dtype):
    assert TensorExamples(np.zeros(2), labels).labels.dtype == dtype


def test_a_read_only_array_is_copied():
    inputs = np.zeros((2, 2))
    inputs.flags.writeable = False
    assert TensorExamples(inputs, [0, 1]).inputs.shape == (2, 2)


@pytest.mark.parametrize(
    ("inputs", "labels", "message"),
    [
        (np.zeros(3), [0, 1], "3 inputs, but 2 labels"),
        (np.array(["a", "b"]), None, "inputs are not numbers"),
        (np.array([{}, {}]), None, "inputs are not numbers"),
        (3.0, None, "one entry per example"),
    ],
)
def test_unusable_data_are_refused(inputs, labels, message):
    with pytest.raises(DataError, match=message):
        TensorExamples(inputs, labels)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_value_that_is_not_finite_is_found_among_the_rows(value):
    inputs = torch.zeros(4, 3)
    inputs[2, 1] = value
    pool = TensorExamples(inputs, [0, 1, 0, 1])
    assert pool.fault(np.array([0, 2, 3])) == (2, "non-finite value (NaN or infinity)")
    assert pool.fault(np.array([0, 1, 3])) is None


def test_a_label_that_is_not_finite_is_found():
    assert TensorExamples(torch.zeros(2, 1), [0.0, np.nan]).fault(np.array([0, 1]))[0] == 1


def test_large_finite_values_are_no_fault():
    assert TensorExamples(np.full((4, 2), 1e308)).fault(np.arange(4)) is None


def test_the_pool_is_copied_to_a_device_once():
    pool = TensorExamples(torch.zeros(4, 3), [0, 1, 0, 1])
    meta = torch.device("meta")
    inputs, labels = batches(pool, [0, 1], device=meta)[0]
    assert inputs.device == labels.device == meta
    assert pool._at(meta)[0] is pool._at(meta)[0]


def test_a_pool_copied_in_inference_mode_can_be_trained_on():
    pool = TensorExamples(torch.ones(4, 3), [0, 1, 0, 1])
    meta = torch.device("meta")
    with torch.inference_mode():
        batches(pool, [0, 1], device=meta)
    assert not pool._at(meta)[0].is_inference()
