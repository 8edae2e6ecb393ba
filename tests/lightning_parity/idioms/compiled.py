"""Modules that torch compiles."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from tests.lightning_parity.idioms.base import Net
from tests.lightning_parity.idioms.layers import BatchNorm


class CompiledNetwork(Net):
    """``self.net = torch.compile(self.net)``: its keys have a prefix."""

    def __init__(self) -> None:
        super().__init__()
        self.net = torch.compile(self.net, backend="eager")  # type: ignore[assignment]


class CompiledInPlace(BatchNorm):
    """``self.net.compile()`` in ``configure_model()``."""

    def configure_model(self) -> None:
        self.net.compile(backend="aot_eager")


class LogsOutside(Net):
    """Logs in hooks only, which are not compiled: tracing ``self.log`` takes long."""

    validation_step = pl.LightningModule.validation_step

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.loss(batch)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.log("train/loss", outputs["loss"], on_step=False, on_epoch=True)

    def test_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.loss(batch)

    def on_test_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.log("test/loss", outputs, batch_size=len(batch[1]), on_epoch=True)


def compiled_module() -> Any:
    """Return a module compiled as a whole, as in Lightning's documentation."""
    return torch.compile(LogsOutside(), backend="eager")
