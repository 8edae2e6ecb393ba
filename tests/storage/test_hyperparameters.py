"""A run whose hyperparameters are real ones is resumed, tested, personalized and exported."""

from __future__ import annotations

from enum import Enum
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from fedlightning import AtomicCheckpointIO, FedAvg, FedBABU, FederatedModule
from fedlightning.errors import CheckpointError
from fedlightning.personalization.models import client_model
from tests.toys import CLASSES, FEATURES, data, fit, net, same, state, trainer


class Kind(Enum):
    TANH = "tanh"
    RELU = "relu"


class Real(FederatedModule):
    """A module with hyperparameters as people have them."""

    def __init__(self, kind: Kind, root: Path, config, optimizer, rate) -> None:
        super().__init__(lr=0.1)
        self.save_hyperparameters()
        activation = nn.Tanh() if kind is Kind.TANH else nn.ReLU()
        self.body = nn.Sequential(nn.Linear(FEATURES, config.net.width), activation)
        self.head = nn.Linear(config.net.width, CLASSES)

    def configure_optimizers(self):
        parameters = [p for p in self.parameters() if p.requires_grad]
        return self.hparams["optimizer"](
            parameters, lr=self.hparams["rate"], betas=self.hparams["config"].betas
        )


def arguments():
    config = OmegaConf.create({"net": {"width": 5}, "betas": [0.9, 0.99]})
    adam = partial(torch.optim.Adam, eps=1e-6)
    return {
        "kind": Kind.TANH,
        "root": Path("data"),
        "config": config,
        "optimizer": adam,
        "rate": np.logspace(-2, 0, 3)[1],
    }


def real(seed=0):
    return net(seed, Real, **arguments())


pytestmark = pytest.mark.filterwarnings("ignore:checkpoints hold plain values")


def test_it_resumes_as_if_it_had_not_been_stopped(tmp_path):
    whole, resumed = real(), real(seed=1)
    fit(whole, FedAvg(), rounds=3)
    fit(real(), FedAvg(), rounds=1, folder=tmp_path)
    fit(resumed, FedAvg(), rounds=3, folder=tmp_path, ckpt="last")
    assert same(state(resumed), state(whole))


def test_it_is_tested_personalized_and_exported(tmp_path):
    module = real()
    built = fit(module, FedBABU(), rounds=1, folder=tmp_path)
    right = built.test(module, datamodule=data(), verbose=False)
    path = next(tmp_path.rglob("last.ckpt"))
    again = trainer(FedBABU(), folder=tmp_path)
    assert again.test(real(1), datamodule=data(), ckpt_path=path, verbose=False) == right
    again.personalize(real(1), datamodule=data(), ckpt_path=path, verbose=False)
    exported = client_model(again.log_dir, 0, real(1), ckpt_path=path)
    body = {key: value for key, value in state(module).items() if key.startswith("body.")}
    assert same({key: state(exported)[key] for key in body}, body)
    assert not torch.equal(exported.head.weight, module.head.weight)


def test_stock_lightning_loads_it_when_given_what_is_not_plain(tmp_path):
    module = real()
    fit(module, FedAvg(), rounds=1, folder=tmp_path)
    given = {name: arguments()[name] for name in ("kind", "config", "optimizer")}
    loaded = Real.load_from_checkpoint(next(tmp_path.rglob("last.ckpt")), **given)
    assert same(state(loaded), state(module))
    assert (loaded.hparams["rate"], loaded.hparams["root"]) == (0.1, "data")


@pytest.mark.filterwarnings("default:checkpoints hold plain values")
def test_the_first_line_says_what_must_be_given_again(tmp_path):
    with pytest.warns(UserWarning, match=r"of Real they hold .*'kind' \(Kind as 'TANH'\)") as seen:
        fit(real(), FedAvg(), rounds=1, folder=tmp_path)
    text = str(seen[0].message)
    assert "'optimizer' (partial as text)" in text
    assert "Real.load_from_checkpoint(path, kind=..., config=..., optimizer=...)" in text
    assert sum("hold plain values" in str(warning.message) for warning in seen) == 1


def test_an_older_checkpoint_says_how_to_read_it(tmp_path):
    old = {"state_dict": {}, "fedlightning": {"format": 2}, "hyper_parameters": arguments()}
    torch.save(old, tmp_path / "old.ckpt")
    with pytest.raises(CheckpointError, match=r"an object of .*; only tensors.* If you trust") as e:
        AtomicCheckpointIO().load_checkpoint(tmp_path / "old.ckpt")
    assert "AtomicCheckpointIO().save_checkpoint(torch.load(path, weights_only=False)" in str(
        e.value
    )
    again = torch.load(tmp_path / "old.ckpt", weights_only=False)
    AtomicCheckpointIO().save_checkpoint(again, tmp_path / "new.ckpt")
    read = AtomicCheckpointIO().load_checkpoint(tmp_path / "new.ckpt")
    assert read["hyper_parameters"]["kind"] == "TANH"
