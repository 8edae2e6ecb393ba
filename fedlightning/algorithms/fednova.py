"""FedNova: clients' changes are averaged per local step, and scaled back."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fedlightning.algorithms.aggregation import Accumulator
from fedlightning.algorithms.algorithm import Algorithm
from fedlightning.algorithms.method import ClientHook
from fedlightning.core.messages import ClientUpdate, Up
from fedlightning.core.state import State, as_complex, widest_float

if TYPE_CHECKING:
    from fedlightning.algorithms.context import ClientContext

__all__ = ["FedNova", "LocalProgress", "NormalizedChanges"]

_NAME = "fednova"


class LocalProgress(ClientHook):
    r"""Sends :math:`\|a_i\|_1` of each parameter: how often its gradients count in its change.

    A step adds :math:`m \leftarrow \rho m + 1`, with :math:`\rho` the optimizer's momentum (of its
    first group; with Nesterov's it adds :math:`1 + \rho m`). Steps in which a parameter had no
    gradient do not count for it.
    """

    messages = (Up(_NAME, merge="keep"),)
    fresh_optimizers = True  # a_i is that of a momentum that starts at zero

    def on_update_start(self, context: ClientContext) -> None:
        """Start at zero."""
        zeros = {key: 0.0 for key in context.parameters if key in context.shared}
        context.scratch[_NAME] = zeros, dict(zeros)

    def on_before_optimizer_step(self, context: ClientContext) -> None:
        """Count a step."""
        moving, total = context.scratch[_NAME]
        group = context.optimizer.param_groups[0]
        rho, nesterov = group.get("momentum", 0.0), group.get("nesterov", False)
        for key in context.gradients().keys() & total.keys():
            moving[key] = rho * moving[key] + 1
            total[key] += 1 + rho * moving[key] if nesterov else moving[key]

    def on_update_end(self, context: ClientContext) -> None:
        """Send the sums."""
        _, total = context.scratch[_NAME]
        sums = {key: torch.tensor(value, dtype=torch.float64) for key, value in total.items()}
        context.send_extra(_NAME, sums)


class NormalizedChanges:
    """Merges what each client has changed per local step, and scales the result back.

    Args:
        weight: Returns an update's weight.
        rule: What merges states.
    """

    def __init__(self, weight: Callable[[ClientUpdate], float], rule: Accumulator) -> None:
        self._weight, self._rule = weight, rule
        self._steps: dict[str, float] = {}
        self._weights = 0.0
        self._received: State = {}

    def push(self, update: ClientUpdate) -> None:
        """Take one update in; what is not a parameter is merged as it is."""
        weight, state = self._weight(update), dict(update.state)
        for key in state:
            sent = update.extras.get(f"{_NAME}/{key}")
            if sent is not None:
                steps, start = float(sent), _wide(update.received[key])
                state[key] = start + (_wide(state[key]) - start) / max(steps, 1.0)
                self._steps[key] = self._steps.get(key, 0.0) + weight * steps
        self._rule.push(state, weight)
        self._weights += weight
        self._received = dict(update.received)

    def result(self) -> State:
        """Return the received model, moved by the mean number of steps."""
        merged = as_complex(self._rule.result(), self._received)
        for key, steps in self._steps.items():
            start = self._received[key]
            move = (steps / self._weights) * (merged[key] - _wide(start))
            merged[key] = (_wide(start) + move).to(start.dtype)
        return merged


def _wide(value: Tensor) -> Tensor:
    return value.to(torch.promote_types(value.dtype, widest_float(value.device)))


class FedNova(Algorithm):
    r"""Federated normalized averaging.

    The server takes :math:`x \leftarrow x + \tau_{eff} \sum_i p_i\, (x_i - x) / \|a_i\|_1` with
    :math:`\tau_{eff} = \sum_i p_i \|a_i\|_1`, where :math:`p_i` are the weights of the mean within
    the cohort and :math:`a_i` says how much each of a client's gradients counts in its change:
    :math:`\|a_i\|_1` is the number of its steps :math:`\tau_i` for plain SGD, and
    :math:`\frac{1}{1 - \rho} \left( \tau_i - \frac{\rho (1 - \rho^{\tau_i})}{1 - \rho} \right)`
    with momentum :math:`\rho`. Buffers have the plain mean. If all clients take as many steps, it
    is FedAvg.

    Each parameter has its own :math:`a_i`, since another algorithm may train parts in turn. What
    other hooks (FedProx) and adaptive optimizers do to gradients does not enter :math:`a_i`, nor do
    learning rates that change within an update.

    Args:
        **choices: Those of :class:`Algorithm`.

    Source:
        Wang, Liu, Liang, Joshi, Poor. Tackling the Objective Inconsistency Problem in Heterogeneous
        Federated Optimization. NeurIPS 2020. https://arxiv.org/abs/2007.07481

    Example:
        >>> FedNova().weights
        'examples'
    """

    def __init__(self, **choices: Any) -> None:
        super().__init__(local=[LocalProgress()], **choices)

    def accumulator(self, rule: Accumulator) -> NormalizedChanges:
        """Return what merges changes per step."""
        return NormalizedChanges(self.weight, rule)
