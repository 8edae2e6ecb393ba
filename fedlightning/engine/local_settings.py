"""What local training takes from a Trainer, or from none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.precision import Precision
from torch.optim import Optimizer

__all__ = ["LocalSettings", "TrainerSettings", "TrainingSettings"]


class TrainingSettings(Protocol):
    """The settings of a client's local training; they are read when they are used.

    Attributes:
        optimizers: The module's optimizers.
        schedulers: Configurations (``scheduler``, ``frequency``) of schedules by optimizer step.
        precision: The precision plugin.
        device: Where the module is.
        accumulate_grad_batches: Batches per optimizer step.
        gradient_clip_val: Bound of the gradients; ``None`` or 0 does not clip.
        gradient_clip_algorithm: ``"norm"`` or ``"value"``; ``None`` means ``"norm"``.
        limit_train_batches: Batches per local epoch: a number, or a share of the client's.
    """

    @property
    def optimizers(self) -> Sequence[Optimizer]: ...  # noqa: D102
    @property
    def schedulers(self) -> Sequence[Any]: ...  # noqa: D102
    @property
    def precision(self) -> Precision: ...  # noqa: D102
    @property
    def device(self) -> torch.device: ...  # noqa: D102
    @property
    def accumulate_grad_batches(self) -> int: ...  # noqa: D102
    @property
    def gradient_clip_val(self) -> float | None: ...  # noqa: D102
    @property
    def gradient_clip_algorithm(self) -> Any: ...  # noqa: D102
    @property
    def limit_train_batches(self) -> int | float: ...  # noqa: D102


@dataclass
class LocalSettings:
    """Settings given one by one, for a client update without a Trainer.

    Args:
        optimizers: The module's optimizers.
        schedulers: Configurations of schedules by optimizer step.
        precision: The precision plugin.
        device: Where the module is.
        accumulate_grad_batches: Batches per optimizer step.
        gradient_clip_val: Bound of the gradients.
        gradient_clip_algorithm: ``"norm"`` or ``"value"``.
        limit_train_batches: Batches per local epoch.

    Example:
        >>> net = torch.nn.Linear(2, 1)
        >>> LocalSettings([torch.optim.SGD(net.parameters(), lr=0.1)]).limit_train_batches
        1.0
    """

    optimizers: Sequence[Optimizer]
    schedulers: Sequence[Any] = ()
    precision: Precision = field(default_factory=Precision)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    accumulate_grad_batches: int = 1
    gradient_clip_val: float | None = None
    gradient_clip_algorithm: str | None = None
    limit_train_batches: int | float = 1.0


class TrainerSettings:
    """The settings of a Trainer, as its callbacks may change them from round to round.

    Args:
        trainer: The trainer.
    """

    def __init__(self, trainer: pl.Trainer) -> None:
        self._trainer = trainer

    @property
    def optimizers(self) -> Sequence[Optimizer]:
        """The module's optimizers."""
        return self._trainer.optimizers

    @property
    def schedulers(self) -> Sequence[Any]:
        """Configurations of schedules by optimizer step."""
        return [c for c in self._trainer.lr_scheduler_configs if c.interval == "step"]

    @property
    def precision(self) -> Precision:
        """The precision plugin."""
        return self._trainer.precision_plugin

    @property
    def device(self) -> torch.device:
        """Where the module is."""
        return self._trainer.strategy.root_device

    @property
    def accumulate_grad_batches(self) -> int:
        """Batches per optimizer step."""
        return self._trainer.accumulate_grad_batches

    @property
    def gradient_clip_val(self) -> float | None:
        """Bound of the gradients."""
        return self._trainer.gradient_clip_val

    @property
    def gradient_clip_algorithm(self) -> Any:
        """``"norm"`` or ``"value"``."""
        return self._trainer.gradient_clip_algorithm

    @property
    def limit_train_batches(self) -> int | float:
        """Batches per local epoch."""
        return self._trainer.limit_train_batches
