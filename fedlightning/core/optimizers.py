"""Optimizers that are built once and reset for every client."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from fedlightning.core.optimizer_memory import load_memory, memory_of
from fedlightning.core.state import State

__all__ = ["FollowingOptimizer", "FreshOptimizers"]


class FreshOptimizers:
    """Resets optimizers, and schedulers that step within a client, to the start of a client update.

    Building an optimizer per client costs more, and one built by the command line from
    ``optimizer:`` exists only once. The learning rate of the round is kept: schedulers that count
    rounds act on the groups before :meth:`mark`.

    Args:
        optimizers: The module's optimizers, before their first step.
        schedulers: Those of its schedulers that step with every optimizer step.
        scaler: The gradient scaler of ``16-mixed``, if there is one.
    """

    def __init__(
        self,
        optimizers: Sequence[Optimizer],
        schedulers: Sequence[LRScheduler],
        scaler: Any = None,
    ) -> None:
        self._optimizers = optimizers
        self._scaler = scaler
        self._schedulers = schedulers
        # empty for most optimizers; Adagrad fills it at construction
        self._pristine = [_copied(optimizer.state) for optimizer in optimizers]
        self.mark()

    def mark(self) -> None:
        """Store the current hyperparameters as those with which a client starts."""
        self._groups = [_hyperparameters(optimizer) for optimizer in self._optimizers]
        self._scale = self._scaler.state_dict() if self._scaler is not None else None
        self._schedules = [copy.deepcopy(scheduler.state_dict()) for scheduler in self._schedulers]

    def restore(self) -> None:
        """Drop momentum and other state; restore hyperparameters and step-wise schedules."""
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.grad = None
        if self._scaler is not None:
            self._scaler.load_state_dict(self._scale)
        self._load(self._pristine, self._groups, self._schedules)

    def memory(self) -> State:
        """Return what optimizers and schedules remember now, as copies of tensors by name."""
        return memory_of(self._optimizers, self._schedulers, self._scaler, self._groups)

    def remember(self, memory: Mapping[str, Tensor]) -> None:
        """Take up what :meth:`memory` returned, after :meth:`restore`."""
        load_memory(memory, self._optimizers, self._schedulers, self._scaler)

    @contextmanager
    def at_start(self) -> Iterator[None]:
        """Show a client's initial state inside the ``with`` block, then the current one again."""
        states = [dict(optimizer.state) for optimizer in self._optimizers]
        groups = [_hyperparameters(optimizer) for optimizer in self._optimizers]
        schedules = [scheduler.state_dict() for scheduler in self._schedulers]
        self._load(self._pristine, self._groups, self._schedules)
        try:
            yield
        finally:
            self._load(states, groups, schedules)

    def _load(
        self, states: list[Any], groups: list[list[dict[str, Any]]], schedules: list[dict[str, Any]]
    ) -> None:
        for optimizer, state, values in zip(self._optimizers, states, groups, strict=True):
            optimizer.state.clear()
            optimizer.state.update(_copied(state))
            for group, value in zip(optimizer.param_groups, values, strict=True):
                group.update(value)
        for scheduler, schedule in zip(self._schedulers, schedules, strict=True):
            scheduler.load_state_dict(copy.deepcopy(schedule))


class FollowingOptimizer:
    """An optimizer of another one's kind for other tensors; learning rates follow the other's.

    Args:
        leader: The optimizer whose kind, settings and learning rates are taken.
        stand_in: Returns the tensor in the place of one of its parameters; ``None`` leaves the
            parameter out.
        lr: A learning rate of its own, in all groups; ``None`` follows the leader's.

    Attributes:
        optimizer: The optimizer itself.

    Example:
        >>> import torch
        >>> leader = torch.optim.SGD([torch.ones(1, requires_grad=True)], lr=0.5)
        >>> own = FollowingOptimizer(leader, lambda parameter: torch.zeros(1, requires_grad=True))
        >>> leader.param_groups[0]["lr"] = 0.25
        >>> own.follow()
        >>> own.optimizer.param_groups[0]["lr"]
        0.25
    """

    def __init__(
        self,
        leader: Optimizer,
        stand_in: Callable[[Tensor], Tensor | None],
        lr: float | None = None,
    ) -> None:
        self._lr = lr
        groups: list[dict[str, Any]] = []
        self._leading: list[dict[str, Any]] = []
        for group in leader.param_groups:
            tensors = [t for p in group["params"] if (t := stand_in(p)) is not None]
            if tensors:
                groups.append({**group, "params": tensors})
                self._leading.append(group)
        cls = type(leader)
        accepted = inspect.signature(cls).parameters  # AdamW's defaults are not all arguments
        settings = {name: value for name, value in leader.defaults.items() if name in accepted}
        self.optimizer: Optimizer = cls(groups, **settings)

    def follow(self) -> None:
        """Take the leader's present hyperparameters."""
        for group, leading in zip(self.optimizer.param_groups, self._leading, strict=True):
            group.update({key: value for key, value in leading.items() if key != "params"})
            if self._lr is not None:
                group["lr"] = self._lr

    def zero_grad(self) -> None:
        """Forget the gradients."""
        self.optimizer.zero_grad()


def _hyperparameters(optimizer: Optimizer) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in group.items() if key != "params"}
        for group in optimizer.param_groups
    ]


def _copied(state: Mapping[Any, Any]) -> dict[Any, Any]:
    return {parameter: copy.deepcopy(values) for parameter, values in state.items()}
