"""Complex weights are merged as pairs of real numbers, by every rule and server optimizer."""

from __future__ import annotations

import pytest
import torch

from fedlightning import ClientUpdate, FedAdam, FedAvg
from fedlightning.aggregation import CoordinateMedian, Mean, NormClipping, TrimmedMean
from fedlightning.core.state import first_non_finite, first_without_norm
from fedlightning.federation.schedule import Job
from fedlightning.federation.server import Server

VALUES = [[1 + 2j, -1 + 0j], [3 - 2j, 5 + 4j], [2 + 9j, -4 - 1j]]
SIZES = [1, 2, 5]


def served(algorithm, rule, start, updates, rounds=1):
    """Return the model after rounds in which clients send the given states."""
    model = {key: value.clone() for key, value in start.items()}
    server = Server(algorithm, num_training_clients=len(updates), aggregator=rule)
    weights = tuple(key for key in model if key != "set_up")
    server.start(model, tuple(model), weights, weights)
    for index in range(rounds):
        for client, (state, size) in enumerate(zip(updates, SIZES, strict=True)):
            server.broadcast(Job(client, index, client))
            sent = {key: value.clone() for key, value in state.items()}
            server.receive(ClientUpdate(client, sent, size, version=index))
        merged = server.aggregate()
        server.commit()
        for key, value in merged.items():
            model[key].copy_(value)
    return model


@pytest.mark.parametrize(
    ("algorithm", "rule", "rounds"),
    [
        (FedAvg(), None, 1),
        (FedAvg(), Mean(), 1),
        (FedAvg(), CoordinateMedian(), 1),
        (FedAvg(), TrimmedMean(0.34), 1),
        (FedAdam(lr=0.1), None, 3),
    ],
    ids=["plain", "mean", "median", "trimmed", "fedadam"],
)
def test_complex_numbers_are_merged_as_their_real_and_imaginary_parts(algorithm, rule, rounds):
    complex_states = [{"w": torch.tensor(v, dtype=torch.complex128)} for v in VALUES]
    pairs = [
        {"w": torch.tensor([[z.real, z.imag] for z in v], dtype=torch.float64)} for v in VALUES
    ]
    start = torch.tensor([0.5 + 0.5j, 1 - 1j], dtype=torch.complex128)
    got = served(algorithm, rule, {"w": start}, complex_states, rounds)["w"]
    right = served(algorithm, rule, {"w": torch.view_as_real(start).clone()}, pairs, rounds)["w"]
    assert got.dtype == torch.complex128
    assert torch.equal(torch.view_as_real(got), right)


def test_the_mean_of_complex_weights_by_hand():
    states = [{"w": torch.tensor(v, dtype=torch.complex64)} for v in VALUES]
    start = {"w": torch.zeros(2, dtype=torch.complex64)}
    got = served(FedAvg(), None, start, states)["w"]
    right = [sum(n * v[i] for n, v in zip(SIZES, VALUES, strict=True)) / 8 for i in range(2)]
    assert torch.allclose(got, torch.tensor(right, dtype=torch.complex64))


def test_a_complex_update_is_clipped_by_its_whole_norm():
    start = {"w": torch.zeros(2, dtype=torch.complex64)}
    sent = [{"w": torch.tensor([3 + 4j, 0j], dtype=torch.complex64)}] * 3
    got = served(FedAvg(), NormClipping(max_norm=1.0), start, sent)["w"]
    assert torch.allclose(got, torch.tensor([0.6 + 0.8j, 0j], dtype=torch.complex64))


@pytest.mark.parametrize("bad", [complex("nan"), complex(0, float("inf"))])
def test_a_complex_number_that_is_not_finite_is_found(bad):
    state = {"w": torch.tensor([1 + 1j, bad], dtype=torch.complex64)}
    assert first_non_finite(state) == "w"
    assert first_without_norm(state) == "w"


def test_a_flag_counts_if_all_clients_agree_and_stays_otherwise():
    states = [
        {"set_up": torch.tensor(True), "w": torch.ones(1)},
        {"set_up": torch.tensor(True), "w": torch.ones(1)},
        {"set_up": torch.tensor(True), "w": torch.ones(1)},
    ]
    start = {"set_up": torch.tensor(False), "w": torch.zeros(1)}
    assert bool(served(FedAvg(), None, start, states)["set_up"])
    states[1]["set_up"] = torch.tensor(False)
    assert not bool(served(FedAvg(), None, start, states)["set_up"])


def test_sparse_tensors_are_the_servers_own():
    matrix = torch.eye(3).to_sparse()
    states = [{"a": matrix, "w": torch.ones(1)}] * 3
    got = served(FedAvg(), None, {"a": matrix, "w": torch.zeros(1)}, states)
    assert torch.equal(got["a"].to_dense(), torch.eye(3))
    assert torch.equal(got["w"], torch.ones(1))
