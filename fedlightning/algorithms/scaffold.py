"""SCAFFOLD: control variates correct the drift of clients from each other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fedlightning.algorithms.algorithm import Algorithm, Weights
from fedlightning.algorithms.method import Aggregation, ClientHook
from fedlightning.algorithms.server_step import ServerSGD
from fedlightning.core.messages import Down, Up
from fedlightning.core.state import State

if TYPE_CHECKING:
    from fedlightning.algorithms.context import ClientContext

__all__ = ["SCAFFOLD", "ControlVariates"]

_NAME = "scaffold"


class ControlVariates(ClientHook):
    r"""Adds :math:`c - c_i` to every local gradient.

    :math:`c_i` is the mean of the client's gradients along its last update, :math:`c` that over
    clients. For plain SGD of :math:`K` steps this mean is the paper's second option,
    :math:`c_i - c + (x - y_i) / (K \eta_l)`; unlike that formula it also means something with
    momentum, weight decay and learning rates that change. Steps in which a parameter had no
    gradient, since another part was trained, do not count for it. Parameters that are trained
    but not shared have none.
    """

    messages = (Down(_NAME), Up(_NAME, merge="mean"))
    first = True  # a control variate is made of the loss's own gradients

    def on_update_start(self, context: ClientContext) -> None:
        """Read both control variates and start a new mean."""
        server, own = context.received_extra(_NAME), context.kept(_NAME)
        shift = {
            key: c - own[key] if key in own else c.clone()
            for key, c in server.items()
            if key in context.parameters
        }
        sums = {key: torch.zeros_like(c) for key, c in shift.items()}
        context.scratch[_NAME] = shift, sums, dict.fromkeys(shift, 0)

    @torch.no_grad()
    def on_before_optimizer_step(self, context: ClientContext) -> None:
        """Take the gradient into the mean; correct it."""
        shift, sums, steps = context.scratch[_NAME]
        present = context.gradients()
        keys = [key for key in shift if key in present]
        for key in keys:
            steps[key] += 1
        if keys:
            gradients = [present[key] for key in keys]
            torch._foreach_add_([sums[key] for key in keys], gradients)
            torch._foreach_add_(gradients, [shift[key] for key in keys])

    @torch.no_grad()
    def on_update_end(self, context: ClientContext) -> None:
        """Keep the new control variate; send by how much it has changed."""
        _, sums, steps = context.scratch[_NAME]
        own = {key: torch.zeros_like(total) for key, total in sums.items()} | context.kept(_NAME)
        new = {key: sums[key] / steps[key] if steps[key] else own[key] for key in sums}
        context.keep(_NAME, new)
        context.send_extra(_NAME, {key: c - own[key] for key, c in new.items()})

    def server_state(self, parameters: Mapping[str, Tensor]) -> State:
        """Return control variates of zero."""
        return {f"{_NAME}/{key}": torch.zeros_like(value) for key, value in parameters.items()}

    def on_aggregate(self, aggregation: Aggregation) -> State:
        r"""Return :math:`c + \frac{|S|}{N} \overline{\Delta c_i}`."""
        share = aggregation.num_clients / aggregation.num_training_clients
        changes = aggregation.extras
        return {key: aggregation.state[key] + share * change for key, change in changes.items()}


class SCAFFOLD(Algorithm):
    r"""Stochastic controlled averaging.

    Clients take steps :math:`y \leftarrow y - \eta_l (g_i(y) - c_i + c)` and send
    :math:`y - x` and :math:`\Delta c_i = c_i^+ - c_i`; the server takes
    :math:`x \leftarrow x + \frac{\eta_g}{|S|} \sum (y_i - x)` and
    :math:`c \leftarrow c + \frac{1}{N} \sum \Delta c_i`.

    Args:
        lr: The server's learning rate :math:`\eta_g`; 1 is the plain mean.
        weights: Weights of the mean; the paper's is uniform.
        **choices: Those of :class:`Algorithm`.

    Source:
        Karimireddy, Kale, Mohri, Reddi, Stich, Suresh. SCAFFOLD: Stochastic Controlled Averaging
        for Federated Learning. ICML 2020. https://arxiv.org/abs/1910.06378
    """

    def __init__(
        self, lr: float = 1.0, weights: Weights | None = "uniform", **choices: Any
    ) -> None:
        server = ServerSGD(lr) if lr != 1 else None
        super().__init__(local=[ControlVariates()], server=server, weights=weights, **choices)
