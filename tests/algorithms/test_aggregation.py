"""The server's mean, by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedlightning.algorithms import ClientUpdate, FedAvg, FedBABU
from fedlightning.algorithms.aggregation import WeightedMean


def mean_of(*entries, sums="float64"):
    mean = WeightedMean(sums)
    for state, weight in entries:
        mean.push(state, weight)
    return mean.result()


def test_two_clients_give_the_exact_mean():
    a, b = {"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([3.0, 6.0])}
    assert mean_of((a, 1), (b, 1))["w"].tolist() == [2.0, 4.0]
    assert mean_of((a, 3), (b, 1))["w"].tolist() == [1.5, 3.0]


@given(st.permutations(range(5)))
def test_order_does_not_matter(order):
    states = [{"w": torch.full((3,), float(n) / 7)} for n in range(5)]
    straight = mean_of(*[(state, 1 + n) for n, state in enumerate(states)])["w"]
    shuffled = mean_of(*[(states[n], 1 + n) for n in order])["w"]
    assert torch.equal(straight, shuffled)


@given(st.integers(1, 50), st.floats(-1e6, 1e6, width=32))
def test_the_mean_of_equal_tensors_is_that_tensor(clients, value):
    state = {"w": torch.tensor([value])}
    assert torch.equal(mean_of(*[(state, 1 + n) for n in range(clients)])["w"], state["w"])


def test_integer_buffers_keep_dtype_and_value_because_the_server_keeps_its_own():
    state = {"w": torch.ones(1), "bn.num_batches_tracked": torch.tensor(7)}
    assert mean_of((state, 1)).keys() == {"w"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_dtypes_do_not_change(dtype):
    assert mean_of(({"w": torch.ones(2, dtype=dtype)}, 2))["w"].dtype is dtype


def test_float32_sums_add_as_most_published_code_does():
    values = [torch.tensor([0.1]), torch.tensor([0.2]), torch.tensor([0.3])]
    expected = (values[0] + values[1] + values[2]) / 3
    assert torch.equal(mean_of(*[({"w": v}, 1) for v in values], sums="float32")["w"], expected)


@pytest.mark.parametrize("weight", [0, -1, float("nan"), float("inf")])
def test_a_bad_weight_is_refused(weight):
    with pytest.raises(ValueError, match="weight"):
        WeightedMean().push({"w": torch.ones(1)}, weight)


def test_other_keys_are_refused():
    mean = WeightedMean()
    mean.push({"a": torch.ones(1)}, 1)
    with pytest.raises(ValueError, match="keys differ"):
        mean.push({"b": torch.ones(1)}, 1)


def test_the_mean_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no states"):
        WeightedMean().result()


def test_weights_are_uniform_or_by_examples():
    updates = [
        ClientUpdate(0, {"w": torch.tensor([0.0])}, num_examples=1),
        ClientUpdate(1, {"w": torch.tensor([4.0])}, num_examples=3),
    ]
    assert FedBABU(weights="uniform").aggregate(updates)["w"].item() == 2.0
    assert FedAvg(weights="examples").aggregate(updates)["w"].item() == 3.0
