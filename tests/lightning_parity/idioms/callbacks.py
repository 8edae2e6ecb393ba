"""Lightning's own callbacks, and modules made for them."""

from __future__ import annotations

import tempfile
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.accelerators import CPUAccelerator
from pytorch_lightning.callbacks import (
    BackboneFinetuning,
    BatchSizeFinder,
    DeviceStatsMonitor,
    EarlyStopping,
    GradientAccumulationScheduler,
    LambdaCallback,
    LearningRateFinder,
    LearningRateMonitor,
    ModelCheckpoint,
    ModelPruning,
    ModelSummary,
    RichProgressBar,
    StochasticWeightAveraging,
    Timer,
)
from pytorch_lightning.tuner import Tuner
from torch import Tensor, nn
from torch.optim.lr_scheduler import StepLR

from tests.lightning_parity.idiom import CLASSES, FEATURES, note
from tests.lightning_parity.idioms.base import RATE, Net


class Backbone(Net):
    """A network with a backbone, whose optimizer begins with the rest alone."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.last = nn.Sequential(nn.Linear(FEATURES, 5)), nn.Linear(5, CLASSES)
        del self.net

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.backbone(x)))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], RATE)


class HasRate(Net):
    """A rate and a batch size as attributes, for those who look for better ones."""

    def __init__(self) -> None:
        super().__init__()
        self.lr, self.batch_size = RATE, 4

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), self.lr)


class Scheduled(Net):
    """A schedule for those who watch it."""

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), RATE)
        return [optimizer], [StepLR(optimizer, 1, gamma=0.5)]


class HasExample(Net):
    """An example input, with which the summary counts sizes and operations."""

    def __init__(self) -> None:
        super().__init__()
        self.example_input_array = torch.zeros(2, FEATURES)


class SteadyCPU(CPUAccelerator):
    """A processor with something to report, whatever is installed."""

    def get_device_stats(self, device: Any) -> dict[str, Any]:
        return {"cpu_percent": 1.0}


class Stats(DeviceStatsMonitor):
    """Device statistics without a check for what is installed."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Nothing is missing."""


def swa() -> list[pl.Callback]:
    return [StochasticWeightAveraging(swa_lrs=0.05, swa_epoch_start=1, annealing_epochs=2)]


HAS_AVERAGING = hasattr(pl.callbacks, "WeightAveraging")  # since Lightning 2.6


def ema() -> list[pl.Callback]:
    return [pl.callbacks.EMAWeightAveraging(decay=0.5)]


def every_epoch() -> list[pl.Callback]:
    class EveryEpoch(pl.callbacks.WeightAveraging):  # type: ignore[misc]
        """The mean over epochs."""

        def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
            return epoch_idx is not None

    return [EveryEpoch()]


def backbone() -> list[pl.Callback]:
    return [
        BackboneFinetuning(
            unfreeze_backbone_at_epoch=1, lambda_func=lambda epoch: 0.5, initial_denom_lr=2.0
        )
    ]


def accumulation() -> list[pl.Callback]:
    return [GradientAccumulationScheduler({0: 1, 1: 2})]


def device_stats() -> list[pl.Callback]:
    return [Stats()]


def rich() -> list[pl.Callback]:
    return [RichProgressBar()]


def rate_finder() -> list[pl.Callback]:
    return [LearningRateFinder(num_training_steps=5)]


def size_finder() -> list[pl.Callback]:
    return [BatchSizeFinder(max_trials=1)]


def pruning() -> list[pl.Callback]:
    return [ModelPruning("l1_unstructured", amount=0.5)]


def early_stopping() -> list[pl.Callback]:
    return [EarlyStopping("val/loss", patience=1, min_delta=0.2)]


def stopping_on_training() -> list[pl.Callback]:
    return [EarlyStopping("train/loss_epoch", patience=1, min_delta=0.2)]


def best_checkpoint() -> list[pl.Callback]:
    return [BestScore(tempfile.mkdtemp(), monitor="train/loss_epoch", save_top_k=1)]


class BestScore(ModelCheckpoint):
    """Notes the best score that it has kept."""

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        assert self.best_model_score is not None
        note("train: best score", float(self.best_model_score))


def rate_monitor() -> list[pl.Callback]:
    return [LearningRateMonitor(logging_interval="epoch")]


def summary() -> list[pl.Callback]:
    return [ModelSummary(max_depth=2)]


def timer() -> list[pl.Callback]:
    return [Timer("00:01:00:00")]


def lambdas() -> list[pl.Callback]:
    return [
        LambdaCallback(
            on_validation_epoch_end=lambda trainer, module: note("validated", 1),
            on_train_epoch_end=lambda trainer, module: module.log("train/from_callback", 3.0),
        )
    ]


def find_rate(trainer: pl.Trainer, module: pl.LightningModule, data: dict[str, Any]) -> None:
    """Ask the tuner for a learning rate."""
    Tuner(trainer).lr_find(module, num_training=5, **data)


def find_size(trainer: pl.Trainer, module: pl.LightningModule, data: dict[str, Any]) -> None:
    """Ask the tuner for a batch size."""
    Tuner(trainer).scale_batch_size(module, max_trials=1, **data)
