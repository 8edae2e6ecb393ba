"""What algorithms refuse: settings out of range, networks and data that they cannot work with."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fedlightning import (
    APFL,
    SCAFFOLD,
    Ditto,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedBN,
    FedProx,
    FedRep,
    FedRoD,
    PerFedAvg,
    PersAFL,
    PFedMe,
)
from fedlightning.algorithms import Algorithm, Proximal, ServerSGD
from fedlightning.datamodules import ClientDatasets
from fedlightning.errors import ConfigError
from tests.toys import Net, fit, net, state


def test_settings_that_are_newer_than_checkpoints_are_shown_only_where_they_are_chosen():
    """The text of an algorithm is compared when a run is resumed."""
    assert repr(PerFedAvg()) == (
        "PerFedAvg(local=(MetaGradient(alpha=0.01, variant='first_order', delta=0.001),))"
    )
    assert repr(PFedMe()) == (
        "PFedMe(local=(MoreauEnvelope(strength=15.0, inner_steps=5, lr=None),))"
    )
    assert "batches='same'" in repr(PerFedAvg(batches="same"))
    assert "tolerance=0.1" in repr(PFedMe(tolerance=0.1))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FedProx(mu=-1), r"algorithm\.mu must be a finite number >= 0, got -1\."),
        (lambda: FedProx(mu=float("nan")), r"algorithm\.mu .* got nan\."),
        (lambda: FedAvgM(lr=0), r"algorithm\.lr must be a finite number > 0, got 0\."),
        (lambda: FedAvgM(momentum=1.0), r"algorithm\.momentum must be in \[0, 1\), got 1\.0\."),
        (lambda: FedAdam(beta2=1.0), r"algorithm\.beta2 must be in \[0, 1\), got 1\.0\."),
        (lambda: FedAdam(tau=0), r"algorithm\.tau must be a finite number > 0, got 0\."),
        (lambda: SCAFFOLD(lr=-1), r"algorithm\.lr must be .* > 0, got -1\."),
        (lambda: FedRep(head_epochs=0), r"algorithm\.head_epochs must be an integer >= 1, got 0"),
        (lambda: PerFedAvg(alpha=0), r"algorithm\.alpha must be a finite number > 0, got 0"),
        (lambda: PerFedAvg(variant="third"), r"algorithm\.variant must be one of .* got 'third'"),
        (
            lambda: PerFedAvg(batches="one"),
            r"algorithm\.batches must be one of split, same, got 'o",
        ),
        (lambda: Ditto(strength=-1), r"algorithm\.strength must be .* >= 0, got -1"),
        (lambda: Ditto(epochs=1.5), r"algorithm\.epochs must be an integer >= 1, got 1\.5"),
        (lambda: PFedMe(inner_steps=0), r"algorithm\.inner_steps must be an integer >= 1, got 0"),
        (
            lambda: PFedMe(tolerance=-1),
            r"algorithm\.tolerance must be a finite number >= 0, got -1",
        ),
        (
            lambda: PFedMe(personal_solve=True),
            r"personal_solve needs a tolerance.* set algorithm\.to",
        ),
        (lambda: PersAFL("D"), r"algorithm\.option must be A .plain., B .MAML. or C .* got 'D'"),
        (lambda: PersAFL(beta=0), r"algorithm\.beta must be a finite number > 0, got 0"),
        (lambda: PFedMe(beta=0), r"algorithm\.beta must be a finite number > 0, got 0"),
        (lambda: APFL(alpha=1.5), r"algorithm\.alpha must be in \[0, 1\], got 1\.5"),
        (lambda: FedAvg(weights="size"), r"algorithm\.weights must be one of uniform, examples"),
        (lambda: Algorithm(local=[3]), r"algorithm\.local must be a ClientHook, got 3"),
        (lambda: Algorithm(local=Proximal(1.0)), r"algorithm\.local must be a list of ClientHook"),
        (
            lambda: Algorithm(server="sgd"),
            r"algorithm\.server must be a ServerOptimizer, got 'sgd'",
        ),
        (lambda: Algorithm(share="none", server=ServerSGD()), "ServerSGD needs a global model"),
    ],
)
def test_settings_out_of_their_range_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_fedbn_without_batchnorm_is_refused_before_anything_is_trained():
    with pytest.raises(ConfigError, match=r"FedBN leaves BatchNorm layers .*, and Net has none"):
        fit(net(), FedBN())


class TwoLayers(Net):
    """Has a head of two layers."""

    def __init__(self, **kwargs) -> None:
        super().__init__(**kwargs)
        self.head = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))


def test_fedrod_needs_a_linear_head_and_classes():
    with pytest.raises(
        ConfigError, match=r"a head that is one nn\.Linear; the head of TwoLayers is not"
    ):
        fit(net(module=TwoLayers), FedRoD(), federation={"on_client_failure": "skip"})

    class Regression(Net):
        def training_step(self, batch, batch_idx):
            return (self(batch[0]) - batch[1][:, None]).square().mean()

        def test_step(self, batch, batch_idx):
            pass

    pairs = [(torch.randn(6, 4), torch.rand(6)) for _ in range(4)]
    clients = ClientDatasets(train=pairs, test=pairs, batch_size=4)
    with pytest.raises(ConfigError, match="FedRoD needs one class per example"):
        fit(net(module=Regression), FedRoD(), datamodule=clients)


def test_other_optimizers_are_made_alike_for_own_models():
    class Adam(Net):
        def configure_optimizers(self):
            return torch.optim.AdamW(
                [
                    {"params": self.body.parameters(), "lr": 0.01},
                    {"params": self.head.parameters()},
                ],
                lr=0.1,
            )

    for algorithm in (APFL(), FedRoD(), PFedMe(), Ditto(), PerFedAvg(), SCAFFOLD(), FedRep(1)):
        module = net(module=Adam)
        fit(module, algorithm)
        assert all(torch.isfinite(value).all() for value in state(module).values())
