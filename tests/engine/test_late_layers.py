"""A network that is complete only after ``setup`` is compared with a checkpoint after that."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fedlightning import FedAvg, FedBABU, FederatedModule
from fedlightning.errors import CheckpointError
from fedlightning.personalization.models import client_model
from tests.toys import CLASSES, FEATURES, data, fit, net, same, state, trainer


class Late(FederatedModule):
    """Its head is made in ``setup``, when the number of classes is known."""

    def __init__(self, width: int = 5) -> None:
        super().__init__(lr=0.1, lr_milestones=())
        self.body = nn.Sequential(nn.Linear(FEATURES, width), nn.ReLU())

    def setup(self, stage: str) -> None:
        if not hasattr(self, "head"):
            with torch.random.fork_rng():
                torch.manual_seed(1)
                self.head = nn.Linear(
                    self.body[0].out_features, self.trainer.datamodule.num_classes
                )


class Configured(Late):
    """The same in ``configure_model``."""

    def configure_model(self) -> None:
        Late.setup(self, "fit")

    def setup(self, stage: str) -> None:
        """Nothing is made here."""


class WithoutTrainer(Late):
    def setup(self, stage: str) -> None:
        self.head = nn.Linear(5, CLASSES)


@pytest.mark.parametrize("kind", [Late, Configured])
def test_it_resumes_as_if_it_had_not_been_stopped(kind, tmp_path):
    whole, resumed = net(0, kind), net(3, kind)
    fit(whole, FedAvg(), rounds=3)
    fit(net(0, kind), FedAvg(), rounds=1, folder=tmp_path)
    fit(resumed, FedAvg(), rounds=3, folder=tmp_path, ckpt="last")
    assert same(state(resumed), state(whole))


@pytest.mark.parametrize("kind", [Late, Configured])
def test_a_new_one_is_tested_and_personalized_from_the_file(kind, tmp_path):
    module = net(0, kind)
    built = fit(module, FedBABU(), rounds=1, folder=tmp_path)
    right = built.test(module, datamodule=data(), verbose=False)
    again, path = trainer(FedBABU(), folder=tmp_path), next(tmp_path.rglob("last.ckpt"))
    assert again.test(net(3, kind), datamodule=data(), ckpt_path=path, verbose=False) == right
    new = net(3, kind)
    again.personalize(new, datamodule=data(), ckpt_path=path, verbose=False)
    assert same(state(new), state(module))


@pytest.mark.parametrize("kind", [Late, Configured])
@pytest.mark.parametrize("call", ["fit", "test", "personalize"])
def test_another_network_is_refused_all_the_same(kind, call, tmp_path):
    fit(net(0, kind), FedAvg(), rounds=1, folder=tmp_path)
    path = next(tmp_path.rglob("last.ckpt"))
    run = getattr(trainer(FedAvg(), rounds=2, folder=tmp_path / "new"), call)
    with pytest.raises(CheckpointError, match=r"last.ckpt'.*weight is \(5, 4\) in the checkpoint"):
        run(net(0, kind, width=6), datamodule=data(), ckpt_path=path)


def test_export_sets_the_module_up_if_that_needs_no_trainer(tmp_path):
    module = net(0, WithoutTrainer)
    built = fit(module, FedAvg(), rounds=1, folder=tmp_path)
    assert same(state(client_model(built.log_dir, "global", net(3, WithoutTrainer))), state(module))
    with pytest.raises(CheckpointError, match=r"only the file has head.bias, .*Late.setup, which"):
        client_model(built.log_dir, "global", net(3, Late))
