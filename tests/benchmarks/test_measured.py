"""What benchmarks measure still runs, on a small part of their data."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest
import torch

from fedlightning.datamodules import FederatedArrays

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def _found(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))  # they import each other as scripts do


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("features_once", [False, True])
def test_a_client_is_personalised_by_each_variant(channels_last, features_once):
    inputs, labels = torch.randn(60, 1, 28, 28), torch.arange(60) % 10
    clients = FederatedArrays((inputs, labels), (inputs, labels), num_clients=2, seed=0)
    clients.setup()
    personalize = import_module("personalization").personalize
    found = personalize("W2", clients, 1, False, channels_last, features_once)
    assert found.cpu > 0
    assert 0 <= found.accuracy <= 1


def test_a_population_has_the_clients_that_it_was_asked_for():
    clients = import_module("population").data("generated", 300, cache=1)
    clients.setup()
    assert clients.num_clients == 300
    inputs, _ = next(iter(clients.batches(299, "train")))
    assert bool(torch.isfinite(inputs).all())
