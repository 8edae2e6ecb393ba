"""What ``self.log`` can be told."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.lightning_parity.idioms.base import Net


class LogsByDefault(Net):
    """``self.log(name, value)`` in a training step, and nothing else said."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.log("train/loss", loss)
        return loss


class LogsByEpoch(LogsByDefault):
    """The same averaged over the epoch, which is what the documentation says of local steps."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.log("train/loss", loss, on_step=False, on_epoch=True)
        return loss


class LogsStepAndEpoch(Net):
    """``on_step=True, on_epoch=True``: one name becomes three."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.log("train/loss", loss, on_step=True, on_epoch=True, prog_bar=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", self.loss(batch), on_step=True, on_epoch=True)


class AllFlags(Net):
    """Every flag of ``self.log``."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        by_epoch = {"on_step": False, "on_epoch": True}
        self.log("train/bar", loss, prog_bar=True, **by_epoch)
        self.log("train/hidden", loss, logger=False, **by_epoch)
        self.log("train/bar_only", loss, prog_bar=True, logger=False, **by_epoch)
        self.log("train/weighted", loss, batch_size=batch_idx + 1, **by_epoch)
        self.log("train/graph", loss, enable_graph=True, **by_epoch)
        self.log("train/loader", loss, add_dataloader_idx=False, **by_epoch)
        self.log("train/rank_zero", loss, rank_zero_only=True, **by_epoch)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        loss = self.loss(batch)
        self.log("val/bar", loss, prog_bar=True)
        self.log("val/hidden", loss, logger=False)
        self.log("val/weighted", loss, batch_size=batch_idx + 1)
        self.log("val/loader", loss, add_dataloader_idx=False)
        self.log("val/rank_zero", loss, rank_zero_only=True)


class Reductions(Net):
    """``reduce_fx`` by name and as functions."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self._log("train", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._log("val", self.loss(batch))

    def _log(self, split: str, loss: Tensor) -> None:
        by_epoch: dict[str, Any] = {"on_step": False, "on_epoch": True}
        self.log(f"{split}/max", loss, reduce_fx="max", **by_epoch)
        self.log(f"{split}/min", loss, reduce_fx="min", **by_epoch)
        self.log(f"{split}/sum", loss, reduce_fx="sum", **by_epoch)
        self.log(f"{split}/torch_max", loss, reduce_fx=torch.max, **by_epoch)
        self.log(f"{split}/torch_min", loss, reduce_fx=torch.min, **by_epoch)
        self.log(f"{split}/torch_sum", loss, reduce_fx=torch.sum, **by_epoch)
        self.log(f"{split}/torch_mean", loss, reduce_fx=torch.mean, **by_epoch)


class OwnReduction(Net):
    """``reduce_fx`` of one's own, which Lightning does not take."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.log("train/spread", loss, reduce_fx=torch.std, on_step=False, on_epoch=True)
        return loss


class Synchronised(Net):
    """``sync_dist=True`` everywhere."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.log("train/loss", loss, on_step=False, on_epoch=True, sync_dist=True)
        return loss

    def on_train_epoch_end(self) -> None:
        self.log("train/weight", self.net[0].weight.abs().sum().detach(), sync_dist=True)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", self.loss(batch), sync_dist=True)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test/loss", self.loss(batch), sync_dist=True)


class Dictionaries(Net):
    """``self.log_dict`` with flags, in steps and hooks."""

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        x, y = batch
        logits = self(x)
        loss = F.cross_entropy(logits, y)
        values = {"train/loss": loss, "train/acc": (logits.argmax(dim=1) == y).float().mean()}
        self.log_dict(values, on_step=False, on_epoch=True, prog_bar=True, batch_size=len(y))
        return {"loss": loss, "logits": logits.detach()}

    def on_train_epoch_end(self) -> None:
        self.log_dict({"train/a": 1.0, "train/b": 2.0}, logger=False)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log_dict({"val/loss": self.loss(batch), "val/size": float(len(batch[1]))})


class AllKindsOfNumbers(Net):
    """Floats, NumPy numbers, and tensors of several types and shapes."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self._log("train", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._log("val", self.loss(batch))

    def _log(self, split: str, loss: Tensor) -> None:
        value = float(loss.detach())
        kinds: dict[str, Any] = {
            "float": value,
            "numpy": np.float64(value),
            "double": loss.double(),
            "half": loss.bfloat16(),
            "one": loss.reshape(1),
            "grad": loss,
        }
        for name, number in kinds.items():
            self.log(f"{split}/{name}", number, on_step=False, on_epoch=True)


class LogsInHooks(Net):
    """``self.log`` in hooks around the step."""

    def on_train_epoch_start(self) -> None:
        self.log("train/rate", self.optimizers().param_groups[0]["lr"])

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.log("train/size", float(len(batch[1])), on_step=False, on_epoch=True)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        norm = torch.stack([p.grad.norm() for p in self.parameters()]).norm()
        self.log("train/norm", norm, on_step=False, on_epoch=True)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.log("train/twice", 2 * outputs["loss"], on_step=False, on_epoch=True)

    def on_train_epoch_end(self) -> None:
        self.log("train/end", self.net[0].bias.sum().detach())

    def on_validation_epoch_start(self) -> None:
        self.log("val/start", self.net[0].bias.sum())

    def on_validation_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.log("val/size", float(len(batch[1])), on_step=False, on_epoch=True)

    def on_validation_epoch_end(self) -> None:
        self.log("val/end", self.net[0].bias.sum())


class LogsInForward(Net):
    """``self.log`` in ``forward``, which steps of all splits call."""

    def forward(self, x: Tensor) -> Tensor:
        logits = self.net(x)
        if not self.trainer.sanity_checking:
            split = "train" if self.training else "test" if self.trainer.testing else "val"
            scale = logits.abs().mean().detach()
            self.log(f"{split}/scale", scale, on_step=False, on_epoch=True, batch_size=len(x))
        return logits


class LogsNowAndThen(Net):
    """A value that only some batches have."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        if batch_idx % 2:
            self.log("train/odd", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            self.log("val/first", self.loss(batch))


class NoIndex(Net):
    """Steps without ``batch_idx``; ``validation_step`` takes any arguments."""

    def training_step(self, batch: Any) -> Tensor:  # type: ignore[override]
        return super().training_step(batch, 0)

    def validation_step(self, *args: Any, **kwargs: Any) -> None:  # type: ignore[override]
        self.log("val/loss", self.loss(args[0]))

    def test_step(self, batch: Any) -> None:  # type: ignore[override]
        self.log("test/loss", self.loss(batch))
