"""FedMD: a round by hand, the consensus, local training without it, what is refused."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from fedlightning import FedMD, LocalOnly
from fedlightning.algorithms import Consensus
from fedlightning.core.divergence import softmax_divergence
from fedlightning.core.seeding import Key
from fedlightning.errors import ConfigError
from fedlightning.models import LayeredNetworks
from tests.algorithms.test_systems import MIXED, Pictures, pictures
from tests.toys import data, fit, loop_of, net, same, trainer


def network(**kwargs):
    return net(module=LayeredNetworks, **{**MIXED, "momentum": 0.0, **kwargs})


def run(algorithm, rounds=2, cohorts=None, **kwargs):
    built = trainer(algorithm, rounds=rounds, check_val_every_n_epoch=99, **kwargs)
    if cohorts is not None:
        loop_of(built).cohort = cohorts.__getitem__
    built.fit(network(), datamodule=Pictures())
    return loop_of(built)


def test_the_divergence_is_that_of_the_textbook():
    p, q = torch.tensor([[0.5, 0.25, 0.25]]), torch.tensor([[0.25, 0.5, 0.25]])
    found = softmax_divergence(p.double().log() + 3, q.double().log())
    assert found.item() == pytest.approx(0.25 * torch.tensor(2.0).log().item(), abs=1e-7)
    assert softmax_divergence(p, p).item() == 0


def test_the_consensus_is_the_mean_of_the_clients_logits():
    loop = run(FedMD(public_batch_size=4), rounds=1, cohorts=[(0, 3)], cohort=2)
    x, _ = pictures(10, seed=99)
    logits = []
    for client in (0, 3):
        module = network()
        module.load_state_dict({**module.state_dict(), **loop.client_store.get(client)})
        with torch.no_grad():
            logits.append(module(x))
    assert torch.allclose(loop.server.state_dict()["fedmd"], (logits[0] + logits[1]) / 2, atol=1e-6)


def test_a_second_turn_by_hand():
    """Client 1 digests the consensus and the public labels, then trains on its own examples."""
    algorithm = FedMD(public_epochs=2, public_labels=0.5, public_batch_size=4)
    before = run(algorithm, rounds=1)
    after = run(algorithm, rounds=2, cohorts=[(0, 1, 2, 3), (1,)], cohort=1.0)
    x, y = pictures(10, seed=99)
    target = before.server.state_dict()["fedmd"].softmax(1)
    module = network()
    module.load_state_dict({**module.state_dict(), **before.client_store.get(1)})
    steps = []
    for epoch in range(2):
        key = Key(before.seed, "public", round=1, client=1, epoch=epoch)
        for rows in torch.randperm(10, generator=key.torch()).split(4):
            steps.append((x[rows], y[rows], target[rows]))
    own = Pictures()
    own.setup()
    steps += [(x, y, None) for x, y in own.batches(1, "train", key=Key(before.seed, "fit", 1, 1))]
    for inputs, labels, soft in steps:
        logits = module(inputs)
        loss = F.cross_entropy(logits, labels)
        if soft is not None:
            loss = 0.5 * loss + (soft * (soft.log() - logits.log_softmax(1))).sum(1).mean()
        network_of = module.networks["conv"]
        for p, g in zip(network_of.parameters(), torch.autograd.grad(
                loss, list(network_of.parameters())), strict=True):  # fmt: skip
            p.data -= 0.1 * g
    found, want = after.client_store.get(1), module.state_dict()
    assert all(torch.allclose(found[key], want[key], atol=1e-6) for key in found)


def test_switched_off_it_is_local_training_bit_for_bit():
    ours, local = run(FedMD(public_epochs=0)), run(LocalOnly())
    for client in range(4):
        assert same(ours.client_store.get(client), local.client_store.get(client))
    learns = run(FedMD())
    assert not same(learns.client_store.get(0), local.client_store.get(0))


def test_without_labels_the_first_turn_is_local_training():
    ours, local = run(FedMD(public_labels=0.0), rounds=1), run(LocalOnly(), rounds=1)
    assert same(ours.client_store.get(2), local.client_store.get(2))


def test_data_without_public_examples_is_refused_before_the_first_round():
    with pytest.raises(ConfigError, match="needs public examples, and ClientDatasets has none"):
        fit(net(), FedMD(), datamodule=data())


def test_settings_are_checked():
    with pytest.raises(ConfigError, match=r"algorithm\.public_epochs must be an integer >= 0"):
        Consensus(epochs=-1)
    with pytest.raises(ConfigError, match=r"algorithm\.public_labels must be a finite number >= 0"):
        FedMD(public_labels=-0.1)
