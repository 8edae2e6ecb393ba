"""Hooks on every level."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from tests.lightning_parity.idiom import note
from tests.lightning_parity.idioms.base import Net

TRAIN_HOOKS = (
    "on_train_start",
    "on_train_epoch_start",
    "on_train_batch_start",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_train_batch_end",
    "on_train_epoch_end",
    "on_train_end",
)
VAL_HOOKS = (
    "on_validation_model_eval",
    "on_validation_start",
    "on_validation_epoch_start",
    "on_validation_batch_start",
    "on_validation_batch_end",
    "on_validation_epoch_end",
    "on_validation_end",
    "on_validation_model_train",
)


class HookOrder(Net):
    """A module that writes down its hooks."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        note("train: hooks", f"training_step {batch_idx}")
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        note("val: hooks", f"validation_step {batch_idx}")
        super().validation_step(batch, batch_idx)


def _noted(about: str, name: str) -> Any:
    def hook(self: Net, *args: Any, **kwargs: Any) -> Any:
        places = [str(arg) for arg in args if isinstance(arg, int)]
        note(about, " ".join([name, *places]))
        return getattr(pl.LightningModule, name)(self, *args, **kwargs)

    return hook


for _name in TRAIN_HOOKS:
    setattr(HookOrder, _name, _noted("train: hooks", _name))
for _name in VAL_HOOKS:
    setattr(HookOrder, _name, _noted("val: hooks", _name))


class ValidationBatches(Net):
    """Hooks around validation batches see the batch and what the step returned."""

    def validation_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        loss = self.loss(batch)
        self.log("val/loss", loss)
        return {"loss": loss}

    def on_validation_batch_start(
        self, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        note("val: size of batch", (batch_idx, len(batch[1])))

    def on_validation_batch_end(
        self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        note("val: loss of batch", (batch_idx, float(outputs["loss"])))

    def test_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.loss(batch)

    def on_test_batch_end(
        self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self.log("test/loss", outputs, batch_size=len(batch[1]), on_epoch=True)


class BatchTransfer(Net):
    """Hooks around the transfer of a batch, which look at what the trainer does."""

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch[0] + 1, batch[1]

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        x, y = batch
        return (x * 0.5 if self.trainer.training else x), y


class ForwardHooks(Net):
    """Torch's own hooks on a layer, which keep what went through it."""

    def __init__(self) -> None:
        super().__init__()
        self.activity: list[float] = []
        self.net[0].register_forward_hook(
            lambda layer, inputs, output: self.activity.append(float(output.detach().abs().mean()))
        )

    def on_train_epoch_start(self) -> None:
        self.activity.clear()

    def on_train_epoch_end(self) -> None:
        trained = self.activity[: int(self.trainer.num_training_batches)]
        self.log("train/activity", sum(trained) / len(trained))

    def on_validation_epoch_start(self) -> None:
        self.val_from = len(self.activity)

    def on_validation_epoch_end(self) -> None:
        values = self.activity[self.val_from :]
        self.log("val/activity", sum(values) / len(values))


class Louder(torch.nn.Module):
    """A layer that does something else in training."""

    def forward(self, x: Tensor) -> Tensor:
        return 1.5 * x if self.training else x


class ModeByHook(Net):
    """``on_validation_model_eval`` leaves a layer in train mode."""

    def __init__(self) -> None:
        super().__init__()
        self.louder = Louder()

    def forward(self, x: Tensor) -> Tensor:
        return self.louder(self.net(x))

    def on_validation_model_eval(self) -> None:
        self.eval()
        self.louder.train()

    def on_test_model_eval(self) -> None:
        self.eval()
        self.louder.train()


class ConfiguresCallbacks(Net):
    """Callbacks that the module brings along."""

    def configure_callbacks(self) -> list[pl.Callback]:
        return [CountsEpochs()]


class CountsEpochs(pl.Callback):
    """Notes each epoch, which to a callback is a round."""

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        note("epochs", trainer.current_epoch)


class SavesMore(Net):
    """``on_save_checkpoint`` and ``on_load_checkpoint`` with something that is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.temperature = 1.0

    def on_fit_start(self) -> None:
        note("train: temperature", self.temperature)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["temperature"] = 0.5

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.temperature = checkpoint["temperature"]

    def loss(self, batch: Any) -> Tensor:
        return self.temperature * super().loss(batch)
