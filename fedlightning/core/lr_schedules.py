"""A learning rate that warms up and then falls along half a cosine, by optimizer step."""

from __future__ import annotations

import math
from typing import Any, Protocol, runtime_checkable

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from fedlightning.core.validation import check_integer, check_number
from fedlightning.errors import ConfigError

__all__ = ["CosineWithWarmup", "NeedsTotal"]


@runtime_checkable
class NeedsTotal(Protocol):
    """A schedule by step that wants to know how many steps it has.

    Attributes:
        total_steps: The number of steps; if the schedule begins with ``None``, it is told at the
            start of every client update.
    """

    total_steps: float | None

    def set_total(self, total_steps: float) -> None:
        """Say how many steps there are."""


class CosineWithWarmup(LRScheduler):
    r"""Linear warm-up, then half a cosine down to zero, by optimizer step.

    Step :math:`i` (from 1) of :math:`T` is taken with the learning rate
    :math:`\eta\, f(i - 1 + s)`, where :math:`s` is ``first`` and, with :math:`w` steps of warm-up,

    .. math::
        f(j) = j / w \text{ for } j < w, \quad
        f(j) = \tfrac12 \Big(1 + \cos \pi \frac{j - w}{\max(1, T - w)}\Big) \text{ otherwise.}

    With ``first=1``, the published code's convention, which advances the schedule before the
    optimizer, the first step has :math:`\eta / w` and the last one 0. With ``first=0``, that of
    torch's schedules, the first step has 0 (and changes nothing) and the last one is above 0.

    Under a :class:`~fedlightning.FederatedTrainer` :math:`T` need not be given. It is the number of
    steps for which the optimizer's state lives (``federation.optimizer_state``): those of a
    client's turn (``fresh``), those of all turns that the client is planned to have (``keep``), or
    those of the whole run (``pass_on``). Return it from ``configure_optimizers`` with the interval
    ``"step"``.

    Beyond :math:`T` the cosine rises again; a planned number is not exceeded.

    Args:
        optimizer: The optimizer.
        warmup_steps: Steps of warm-up :math:`w`.
        total_steps: Number of steps :math:`T`; with ``None``, and as long as nobody has said it,
            the rate stays at :math:`\eta` after the warm-up.
        first: Where the first step stands in the schedule: 1 or 0.
        last_epoch: Steps already taken; -1 starts.

    Raises:
        ConfigError: If a number is out of its range.

    Source:
        Qu, Zhou, Liang, Xia, Wang, Adeli, Fei-Fei, Rubin. Rethinking Architecture Design for
        Tackling Data Heterogeneity in Federated Learning. CVPR 2022.
        https://arxiv.org/abs/2106.06047

    Example:
        >>> import torch
        >>> sgd = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5)
        >>> schedule = CosineWithWarmup(sgd, warmup_steps=2, total_steps=4)
        >>> rates = []
        >>> for _ in range(4):
        ...     rates.append(round(sgd.param_groups[0]["lr"], 6))
        ...     sgd.step()
        ...     schedule.step()
        >>> rates
        [0.25, 0.5, 0.25, 0.0]
    """

    def __init__(
        self,
        optimizer: Optimizer,
        warmup_steps: int,
        total_steps: float | None = None,
        first: int = 1,
        last_epoch: int = -1,
    ) -> None:
        self.warmup_steps = check_integer("warmup_steps", warmup_steps, at_least=0)
        if total_steps is not None:
            total_steps = check_number("total_steps", total_steps, above=0)
        if first not in (0, 1):
            raise ConfigError(f"first must be 0 or 1, got {first!r}.")
        self.total_steps = total_steps
        self.first = first
        super().__init__(optimizer, last_epoch)

    def factor(self, steps: int) -> float:
        """Return the learning rate's factor after so many steps."""
        place = steps + self.first
        if place < self.warmup_steps:
            return place / self.warmup_steps
        if self.total_steps is None:
            return 1.0
        rest = max(1.0, self.total_steps - self.warmup_steps)
        return max(0.0, 0.5 * (1.0 + math.cos(math.pi * (place - self.warmup_steps) / rest)))

    def get_lr(self) -> Any:
        """Return the learning rate of each group for the next step."""
        factor = self.factor(self.last_epoch)
        return [base * factor for base in self.base_lrs]

    def set_total(self, total_steps: float) -> None:
        """Say how many steps there are, before the first of them or in between."""
        self.total_steps = total_steps
        for group, lr in zip(self.optimizer.param_groups, self.get_lr(), strict=True):
            group["lr"] = lr
        self._last_lr = self.get_lr()
