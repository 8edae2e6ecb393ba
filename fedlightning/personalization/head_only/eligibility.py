"""When a client's head can be trained without its body running at every step.

In head mode the body stays in eval mode and does not change, so as a rule what it makes of an
example is the same in all local epochs, before and after fine-tuning. These are the exceptions.
"""

from __future__ import annotations

from typing import TypeGuard

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.precision import Precision
from torch import nn

from fedlightning.core.overrides import overrides
from fedlightning.datamodules import FederatedDataModule
from fedlightning.datamodules.examples import has_classes
from fedlightning.engine.local_training import LOCAL_HOOKS
from fedlightning.engine.per_example import watched
from fedlightning.engine.steps import needs_lightning_step, transfers_batches
from fedlightning.models.base import FederatedModule
from fedlightning.personalization.head_only.linear_sgd import SGDSettings

__all__ = ["obstacle"]

_STEPS = ("training_step", "test_step", "_evaluate_batch", "__call__")
_MODES = ("train", "eval")


def obstacle(
    trainer: pl.Trainer,
    module: pl.LightningModule,
    head: nn.Module | None,
    data: FederatedDataModule,
) -> str | None:
    """Return why training the head alone would not be the same, or ``None``.

    Args:
        trainer: The trainer, holding the optimizer that fine-tunes.
        module: The model; what is trained requires gradients, and nothing else.
        head: Its head.
        data: The clients' data.
    """
    return (
        _of_head(trainer, module, head)
        or _of_module(module)
        or _of_trainer(trainer, module)
        or _of_data(data, head.out_features if _linear(head) else 0)
    )


def _of_head(trainer: pl.Trainer, module: pl.LightningModule, head: nn.Module | None) -> str | None:
    if not _linear(head):
        return "the head is not one nn.Linear"
    own = {id(parameter) for parameter in head.parameters()}
    if {id(p) for p in module.parameters() if p.requires_grad} != own:
        return "what is trained is not the head and all of it"
    if any(p._backward_hooks or p._post_accumulate_grad_hooks for p in head.parameters()):
        return "the head's gradients have hooks"
    groups = [
        group["params"] for optimizer in trainer.optimizers for group in optimizer.param_groups
    ]
    if [{id(parameter) for parameter in group} for group in groups] != [own]:
        return "the optimizer does not have the head's parameters in one group"
    if SGDSettings.of(trainer.optimizers[0]) is None:
        return f"the optimizer is not plain torch.optim.SGD but {_named(trainer.optimizers[0])}"
    return None


def _of_module(module: pl.LightningModule) -> str | None:
    name = type(module).__name__
    if not isinstance(module, FederatedModule):
        return f"{name} is not a FederatedModule, so its steps are its own"
    for method in _STEPS:
        if overrides(module, method, FederatedModule):
            return f"{name} has a {method} of its own"
    for method in (*LOCAL_HOOKS, *_MODES):
        if overrides(module, method, pl.LightningModule):
            return f"{name} has a method {method} of its own"
    return watched(module)


def _of_trainer(trainer: pl.Trainer, module: pl.LightningModule) -> str | None:
    if (reason := needs_lightning_step(trainer, module)) is not None:
        return f"local steps are wanted as they are by {reason}"
    if transfers_batches(trainer, module) or type(trainer.precision_plugin) is not Precision:
        return "hooks or a precision plugin change batches"
    if trainer.gradient_clip_val:
        return "gradients are clipped"
    if trainer.accumulate_grad_batches != 1:
        return "gradients are accumulated"
    if trainer.limit_train_batches != 1.0 or isinstance(trainer.limit_train_batches, int):
        return "limit_train_batches leaves batches out"
    if torch.is_anomaly_enabled():
        return "anomalies are to be detected"
    return None


def _of_data(data: FederatedDataModule, num_classes: int) -> str | None:
    if not data.fixed_examples:
        return f"{type(data).__name__} may show an example differently from batch to batch"
    for labels in (data.pooled.train.labels, data.pooled.test.labels):
        if labels is None or not has_classes(labels):
            return "labels are not one class an example"
        if len(labels) and not (labels.min() >= 0 and labels.max() < num_classes):
            return "the head has no output for some of the labels"
    return None


def _linear(head: nn.Module | None) -> TypeGuard[nn.Linear]:
    return type(head) is nn.Linear and "forward" not in vars(head)


def _named(instance: object) -> str:
    return type(instance).__name__
