"""Training a linear head on features that do not change: no autograd, no body."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Optimizer

__all__ = ["SGDSettings", "tune_linear_head"]


@dataclass(frozen=True)
class SGDSettings:
    """The settings of ``torch.optim.SGD``, under its names.

    Args:
        lr: Learning rate.
        momentum: Share of the velocity that a step keeps.
        dampening: Share of the gradient that the velocity does not take in, after the first step.
        weight_decay: L2 penalty.
        nesterov: Whether a step looks ahead.
    """

    lr: float
    momentum: float = 0.0
    dampening: float = 0.0
    weight_decay: float = 0.0
    nesterov: bool = False

    @classmethod
    def of(cls, optimizer: Optimizer) -> SGDSettings | None:
        """Return an optimizer's settings; ``None`` if it is anything else than plain SGD.

        Example:
            >>> weights = [torch.zeros(2, requires_grad=True)]
            >>> SGDSettings.of(SGD(weights, lr=0.1, momentum=0.9))
            SGDSettings(lr=0.1, momentum=0.9, dampening=0, weight_decay=0, nesterov=False)
            >>> SGDSettings.of(SGD(weights, lr=0.1, maximize=True)) is None
            True
        """
        if type(optimizer) is not SGD or len(optimizer.param_groups) != 1 or _watched(optimizer):
            return None
        group = optimizer.param_groups[0]
        if group["maximize"] or isinstance(group["lr"], Tensor):
            return None
        return cls(**{name: group[name] for name in cls.__dataclass_fields__})


@torch.no_grad()
def tune_linear_head(
    head: nn.Linear,
    features: Tensor,
    labels: Tensor,
    batches: Iterable[Tensor],
    sgd: SGDSettings,
    velocity: Tensor | None = None,
) -> Tensor | None:
    """Take one step of SGD on the mean cross-entropy for each batch; the head changes in place.

    With X the features of a batch of b examples, a column of ones behind them, Y their one-hot
    labels, and W the head's weight with its bias as the last column, the gradient is::

        G = (softmax(X Wᵀ) − Y)ᵀ X / b + weight_decay · W

    and ``torch.optim.SGD`` makes of it, velocity V, which is G in the first step::

        V ← momentum · V + (1 − dampening) · G
        W ← W − lr · V                          nesterov: W − lr · (G + momentum · V)

    Every client has a call of its own. Products over many clients at once save little here, because
    one client's features stay in the cache for all its epochs, and their last bits could depend on
    who shares the product.

    Args:
        head: What is trained.
        features: Its inputs, shape (n, d).
        labels: Their classes, int64, shape (n,).
        batches: The rows of each batch, in the order in which they are visited.
        sgd: How a step is taken.
        velocity: V, where earlier calls have taken steps.

    Returns:
        V after the last step, for the next call; ``None`` without momentum. Several calls do to the
        last bit what one call with all their batches does.

    Example:
        >>> head = nn.Linear(1, 2, bias=False)
        >>> _ = nn.init.zeros_(head.weight)
        >>> _ = tune_linear_head(head, torch.ones(2, 1), torch.tensor([1, 1]),
        ...                      [torch.tensor([0, 1])], SGDSettings(lr=1.0))
        >>> head.weight.flatten().tolist()  # both classes had 1/2
        [-0.5, 0.5]
    """
    inputs, weight = features, head.weight.detach().clone()
    if head.bias is not None:
        inputs = F.pad(features, (0, 1), value=1.0)
        weight = torch.cat([weight, head.bias.detach()[:, None]], dim=1)
    targets = F.one_hot(labels, head.out_features).to(inputs.dtype)
    for batch in batches:
        rows = batch.to(inputs.device)
        x, y = inputs.index_select(0, rows), targets.index_select(0, rows)
        error = torch.softmax(x @ weight.T, dim=1).sub_(y)
        step = torch.addmm(weight, error.T, x, beta=sgd.weight_decay, alpha=1 / len(rows))
        if sgd.momentum:
            if velocity is None:
                velocity = step.clone()
            else:
                velocity.mul_(sgd.momentum).add_(step, alpha=1 - sgd.dampening)
            step = step.add_(velocity, alpha=sgd.momentum) if sgd.nesterov else velocity
        weight.add_(step, alpha=-sgd.lr)
    head.weight.copy_(weight[:, : head.in_features])
    if head.bias is not None:
        head.bias.copy_(weight[:, -1])
    return velocity


def _watched(optimizer: Optimizer) -> bool:
    """Whether a hook sees, or changes, the optimizer's steps."""
    hooks = (optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks)
    return any(hooks) or "step" in vars(optimizer)
