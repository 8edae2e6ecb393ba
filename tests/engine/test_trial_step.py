"""A plain LightningModule is asked with one step, where layers and data seem not to fit."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from fedlightning import FedAvg
from fedlightning.datamodules import ClientDatasets
from fedlightning.errors import ConfigError, DataError
from tests.toys import fit, same, state


class Plain(pl.LightningModule):
    """A module that says nothing of itself."""

    def __init__(self, outputs: int = 2, norm: bool = False) -> None:
        super().__init__()
        self.steps: list[int] = []
        self.layers = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3) if norm else nn.Tanh())
        self.last = nn.Linear(3, outputs)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        self.steps.append(len(y))
        self.log("train/size", float(len(y)))
        return self.loss(self.last(self.layers(x)), y)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Nothing is measured."""

    def loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(outputs, y)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)


class Embedding(Plain):
    """A module whose outputs are not one a class."""

    def loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        return outputs.square().mean()


class Counting(pl.Callback):
    def __init__(self) -> None:
        self.clients = 0

    def on_train_batch_start(self, *_: Any) -> None:
        self.clients += 1


def clients(*sizes: int, classes: int = 2, **options: Any) -> ClientDatasets:
    pairs = [(torch.rand(n, 4), torch.arange(n) % classes) for n in sizes]
    return ClientDatasets(pairs, pairs, batch_size=4, **options)


def test_a_label_that_the_loss_cannot_take_is_named_before_the_first_round():
    pairs = [(torch.rand(5, 4), torch.arange(5) % 2) for _ in range(3)]
    pairs[2][1][3] = 2  # one sample of three clients
    counting = Counting()
    message = (
        r"client 2, sample 3: the loss of Plain cannot take label 2: its last layer has 2 outputs, "
        r"the data has 3 classes \(Target 2 is out of bounds\)\."
    )
    with pytest.raises(DataError, match=message):
        fit(Plain(), FedAvg(), datamodule=ClientDatasets(pairs, pairs), callbacks=[counting])
    assert counting.clients == 0


def test_fewer_outputs_than_classes_are_fine_where_they_are_not_one_a_class():
    module = Embedding()
    fit(module, FedAvg(), rounds=1, datamodule=clients(8, 8, classes=3))
    assert module.steps == []  # neither the trial nor a client leaves anything


def test_a_trial_changes_no_bit(monkeypatch):
    tried, data = Embedding(norm=True), clients(8, 8, classes=3)
    untried = deepcopy(tried)
    fit(tried, FedAvg(), datamodule=data)
    monkeypatch.setattr("fedlightning.engine.loop.check_by_trial", lambda *_: None)
    fit(untried, FedAvg(), datamodule=data)
    assert same(state(tried), state(untried))


def test_a_lone_example_and_batch_norm_are_refused_with_the_client():
    counting = Counting()
    with pytest.raises(DataError, match="client 1 has 9 samples, so a batch of 1 sample, which Pl"):
        fit(Plain(norm=True), FedAvg(), datamodule=clients(8, 9), callbacks=[counting])
    assert counting.clients == 0
    fit(Plain(norm=True), FedAvg(), rounds=1, datamodule=clients(8, 9, drop_last=True))
    frozen = Plain(norm=True)
    frozen.layers[1].eval()
    fit(frozen, FedAvg(), rounds=1, datamodule=clients(8, 9))


class Lazy(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.LazyLinear(3), nn.Tanh())


class Shown(Lazy):
    def configure_model(self) -> None:
        self.layers(torch.zeros(1, 4))


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_a_lazy_layer_must_have_seen_an_example():
    message = r"layers\.0\.weight of Lazy is lazy and uninitialized, .* Lazy\.configure_model\(\): "
    with pytest.raises(ConfigError, match=message):
        fit(Lazy(), FedAvg(), datamodule=clients(8, 8))
    fit(Shown(), FedAvg(), rounds=1, datamodule=clients(8, 8))


def test_a_number_of_steps_that_no_two_clients_share_is_not_given():
    class Cyclic(Plain):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), 0.1)
            steps = self.trainer.estimated_stepping_batches
            return [optimizer], [torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, steps)]

    with pytest.raises(
        ConfigError, match=r"estimated_stepping_batches has no .* schedule by round"
    ):
        fit(Cyclic(), FedAvg(), datamodule=clients(8, 8))


def test_a_compiled_module_trains_and_is_tested_as_it_would_uncompiled():
    usual = Plain()
    inner = Plain()
    inner.load_state_dict(usual.state_dict())
    inner.training_step = torch.compiler.disable(inner.training_step)  # a log cannot be traced
    compiled = torch.compile(inner, backend="eager")
    data = clients(8, 7)
    for module in (usual, compiled):
        built = fit(module, FedAvg(), datamodule=data)
        built.test(module, datamodule=data, verbose=False)
    for key, value in state(usual).items():
        torch.testing.assert_close(value, state(inner)[key], rtol=0, atol=0)
