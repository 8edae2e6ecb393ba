"""Optimizers, schedules, and steps of one's own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import (
    ExponentialLR,
    LambdaLR,
    OneCycleLR,
    ReduceLROnPlateau,
    StepLR,
)

from tests.lightning_parity.idiom import CLASSES, FEATURES, note
from tests.lightning_parity.idioms.base import RATE, Net


def rate(module: Net) -> float:
    """Return the learning rate that the module's optimizer has now."""
    optimizer = module.optimizers()
    assert not isinstance(optimizer, list)
    return float(optimizer.param_groups[0]["lr"])


class Momentum(Net):
    """SGD with momentum and weight decay."""

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), RATE, momentum=0.9, weight_decay=0.01)


class AdamW(Net):
    """AdamW, biases without weight decay, and a rate of its own for the last layer."""

    def configure_optimizers(self) -> Any:
        last = [*self.net[2].parameters()]
        groups = [
            {"params": self.net[0].weight},
            {"params": self.net[0].bias, "weight_decay": 0.0},
            {"params": last, "lr": 0.02},
        ]
        return torch.optim.AdamW(groups, lr=0.01)


class Closure(Net):
    """An optimizer that evaluates the loss itself."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.loss(batch)

    def configure_optimizers(self) -> Any:
        return torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=3)


class EpochSchedule(Net):
    """A schedule that steps after each epoch."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        note("train: rate", rate(self))

    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        return [optimizer], [StepLR(optimizer, step_size=1, gamma=0.5)]


class StepSchedule(EpochSchedule):
    """A schedule that steps after each optimizer step, and one in four steps."""

    def __init__(self, frequency: int = 1) -> None:
        super().__init__()
        self.frequency = frequency

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), RATE)
        schedule = {
            "scheduler": ExponentialLR(optimizer, 0.9),
            "interval": "step",
            "frequency": self.frequency,
        }
        return {"optimizer": optimizer, "lr_scheduler": schedule}


class EveryOtherStep(StepSchedule):
    """A schedule that steps after every second optimizer step."""

    def __init__(self) -> None:
        super().__init__(frequency=2)


class Plateau(EpochSchedule):
    """A schedule that waits for the validation loss to stall."""

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), RATE)
        waiting = ReduceLROnPlateau(optimizer, factor=0.1, patience=0, threshold=0.2)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": waiting, "monitor": "val/loss"},
        }


class TrainPlateau(Plateau):
    """A schedule that waits for the training loss to stall."""

    def configure_optimizers(self) -> Any:
        configured = super().configure_optimizers()
        configured["lr_scheduler"]["monitor"] = "train/loss"
        return configured


class OneCycle(EpochSchedule):
    """One cycle over ``trainer.estimated_stepping_batches`` steps."""

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), RATE)
        steps = int(self.trainer.estimated_stepping_batches)
        note("train: steps to come", steps)
        cycle = OneCycleLR(optimizer, RATE, total_steps=steps, cycle_momentum=False)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cycle, "interval": "step"}}


class OwnScheduleStep(EpochSchedule):
    """``lr_scheduler_step`` overridden."""

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        scheduler.step()
        scheduler.step()


class WarmUp(EpochSchedule):
    """A warm-up in ``optimizer_step``, as in Lightning's documentation."""

    def __init__(self) -> None:
        super().__init__()
        self.taken = 0

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, closure: Any) -> None:  # type: ignore[override]
        self.taken += 1
        for group in optimizer.param_groups:
            group["lr"] = min(1.0, self.taken / 5) * RATE
        optimizer.step(closure=closure)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), RATE)


class WarmUpByLambda(EpochSchedule):
    """A schedule by epoch with a function of one's own."""

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), RATE)
        return [optimizer], [LambdaLR(optimizer, lambda epoch: (epoch + 1) / 3)]


class OwnBackward(Net):
    """``backward``, ``optimizer_zero_grad`` and ``configure_gradient_clipping`` overridden."""

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        (2 * loss).backward()

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
        optimizer.zero_grad(set_to_none=False)

    def configure_gradient_clipping(
        self,
        optimizer: Any,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        if self.current_epoch == 0:
            self.clip_gradients(optimizer, 0.1, "norm")


class GradientHooks(Net):
    """Gradients that are changed after the backward pass and looked at before the step."""

    def on_after_backward(self) -> None:
        for parameter in self.net[2].parameters():
            assert parameter.grad is not None
            parameter.grad.mul_(0.5)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        note("train: gradient", float(self.net[0].weight.grad.norm()))

    def on_before_zero_grad(self, optimizer: Any) -> None:
        note("train: weight", float(self.net[0].weight.detach().norm()))


class Manual(Net):
    """Manual optimization."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        optimizer = self.optimizers()
        loss = self.loss(batch)
        optimizer.zero_grad()
        self.manual_backward(loss)
        self.clip_gradients(optimizer, gradient_clip_val=0.5, gradient_clip_algorithm="norm")
        optimizer.step()
        self.log("train/loss", loss, on_step=False, on_epoch=True)


class ManualUntilLast(Manual):
    """Gradients accumulated by hand, until ``trainer.is_last_batch``, and a schedule by hand."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        optimizer, last = self.optimizers(), self.trainer.is_last_batch
        self.manual_backward(self.loss(batch) / 2)
        if (batch_idx + 1) % 2 == 0 or last:
            optimizer.step()
            optimizer.zero_grad()
            note("train: steps at", batch_idx)
        if last:
            self.lr_schedulers().step()
            note("train: last of", (batch_idx, self.trainer.num_training_batches))

    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        return [optimizer], [StepLR(optimizer, 1, gamma=0.5)]


class TwoOptimizers(Manual):
    """Two optimizers that take turns, one of them with a schedule, as GANs have."""

    def __init__(self) -> None:
        super().__init__()
        self.critic = nn.Linear(CLASSES, 1)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        for_net, for_critic = self.optimizers()
        self.toggle_optimizer(for_net)
        logits = self(batch[0])
        loss = F.cross_entropy(logits, batch[1]) + 0.1 * self.critic(logits).mean()
        self.manual_backward(loss)
        for_net.step()
        for_net.zero_grad()
        self.untoggle_optimizer(for_net)
        self.toggle_optimizer(for_critic)
        judged = (self.critic(self(batch[0]).detach()) - 1).square().mean()
        self.manual_backward(judged)
        for_critic.step()
        for_critic.zero_grad()
        self.untoggle_optimizer(for_critic)
        values = {"train/loss": loss, "train/critic": judged}
        self.log_dict(values, on_step=False, on_epoch=True)

    def on_train_epoch_end(self) -> None:
        self.lr_schedulers().step()

    def configure_optimizers(self) -> Any:
        first = torch.optim.SGD(self.net.parameters(), RATE)
        second = torch.optim.Adam(self.critic.parameters(), 0.01)
        return [first, second], [StepLR(second, 1, gamma=0.5)]


class SkipsSome(Net):
    """``training_step`` returns nothing for some batches."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.loss(batch)
        return None if batch_idx == 1 else loss


class ReturnsNothing(Net):
    """``training_step`` never returns its loss."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("train/loss", self.loss(batch), on_step=False, on_epoch=True)


class EndsEpochEarly(Net):
    """``on_train_batch_start`` returns -1, which ends the epoch."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        return -1 if batch_idx == 2 else None


class ByEpoch(Net):
    """A loss whose second term grows with ``self.current_epoch``, and layers thawed by it."""

    def on_train_epoch_start(self) -> None:
        self.net[0].requires_grad_(self.current_epoch > 0)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.loss(batch) + 0.1 * self.current_epoch * self.net[2].weight.square().sum()
        self.log("train/loss", loss, on_step=False, on_epoch=True)
        return loss


class FrozenPart(Net):
    """A layer without gradients, left out of the optimizer, and one that the loss does not use."""

    def __init__(self) -> None:
        super().__init__()
        self.net[0].requires_grad_(False)
        self.unused = nn.Linear(FEATURES, 2)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], RATE)


class AsksTheTrainer(Net):
    """What the trainer says of the epoch within a step."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        trainer = self.trainer
        note("train: batch", (batch_idx, trainer.is_last_batch, trainer.num_training_batches))
        note("train: mode", (trainer.training, trainer.validating, trainer.testing, self.training))
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        trainer = self.trainer
        note("val: batch", batch_idx)
        note("val: mode", (trainer.training, trainer.validating, trainer.testing, self.training))
        note("val: gradients", torch.is_grad_enabled())
        super().validation_step(batch, batch_idx)


class Curriculum(Net):
    """Noise that shrinks with the share of the epoch that is done."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        share = (batch_idx + 1) / self.trainer.num_training_batches
        note("train: share", share)
        loss = share * self.loss(batch)
        self.log("train/loss", loss, on_step=False, on_epoch=True)
        return loss
