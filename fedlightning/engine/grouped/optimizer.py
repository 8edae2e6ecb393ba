"""Stacked parameters of several clients, and one optimizer that moves them all."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fedlightning.core.optimizers import FollowingOptimizer
from fedlightning.core.state import State

__all__ = ["StackedParameters", "unsupported_optimizer"]

_ELEMENTWISE = (
    torch.optim.SGD,
    torch.optim.Adam,
    torch.optim.AdamW,
    torch.optim.Adagrad,
    torch.optim.RMSprop,
)


class StackedParameters:
    """The parameters of the clients that still train: the first rows of a stack.

    Args:
        like: The module's optimizer: its settings are taken, its state is not.
        module: The module, its parameters frozen as they are to be trained.
        stack: The clients' states, clients first; they change.
    """

    def __init__(self, like: Optimizer, module: nn.Module, stack: State) -> None:
        self._like = like
        self._keys = {id(parameter): key for key, parameter in module.named_parameters()}
        self._frozen = {k for k, p in module.named_parameters() if not p.requires_grad}
        self._stack = stack
        self._rows: State = {}
        self._count = 0
        self._optimizer: Optimizer | None = None

    @property
    def changed(self) -> State:
        """What training may have changed, of all clients."""
        return {key: value for key, value in self._stack.items() if key not in self._frozen}

    def keep(self, count: int) -> None:
        """Go on with the first clients only; the others' rows stay as they are."""
        if count == self._count:
            return
        trained = set(self._keys.values()) - self._frozen
        self._count = count
        self._rows = {
            key: value[:count].requires_grad_(key in trained) for key, value in self._stack.items()
        }
        before, self._optimizer = self._optimizer, self._fresh_optimizer()
        if before is not None:
            _carry_over(before, self._optimizer)

    def state(self, start: int, stop: int) -> State:
        """Return the state of a slice of the clients that train."""
        if (start, stop) == (0, self._count):
            return self._rows
        return {key: value[start:stop] for key, value in self._rows.items()}

    def step(self) -> None:
        """Move everyone's parameters along their gradients."""
        assert self._optimizer is not None
        self._optimizer.step()
        self._optimizer.zero_grad()

    def _fresh_optimizer(self) -> Optimizer:
        return FollowingOptimizer(self._like, lambda p: self._rows[self._keys[id(p)]]).optimizer


def unsupported_optimizer(optimizer: Optimizer, module: nn.Module) -> str | None:
    """Return why an optimizer cannot move several clients' parameters at once, or ``None``.

    Example:
        >>> net = nn.Linear(2, 1)
        >>> unsupported_optimizer(torch.optim.SGD(net.parameters(), lr=0.1), net)
        >>> unsupported_optimizer(torch.optim.LBFGS(net.parameters()), net)
        'LBFGS is not known to treat every number alone'
    """
    name = type(optimizer).__name__
    if type(optimizer) not in _ELEMENTWISE:
        return f"{name} is not known to treat every number alone"
    if optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks:
        return f"{name} has hooks"
    known = {id(parameter) for parameter in module.parameters()}
    if any(id(p) not in known for group in optimizer.param_groups for p in group["params"]):
        return f"{name} moves more than the module's parameters"
    return None


def _carry_over(before: Optimizer, after: Optimizer) -> None:
    """Give the optimizer of fewer clients their rows of what the larger one has gathered."""
    for old_group, new_group in zip(before.param_groups, after.param_groups, strict=True):
        for old, new in zip(old_group["params"], new_group["params"], strict=True):
            after.state[new] = {
                name: value[: len(new)]
                if isinstance(value, Tensor) and value.shape == old.shape
                else value
                for name, value in before.state.get(old, {}).items()
            }
