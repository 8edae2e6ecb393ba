"""FedAMP: the server sends each client a mixture of all models, the nearest of which count most."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fedlightning.algorithms.algorithm import Algorithm
from fedlightning.algorithms.method import Aggregation, ClientHook
from fedlightning.core.messages import Down, Up
from fedlightning.core.state import State, under, widest_float
from fedlightning.core.validation import check_number

if TYPE_CHECKING:
    from fedlightning.algorithms.context import ClientContext

__all__ = ["AttentivePull", "FedAMP"]

_NAME = "fedamp"


class AttentivePull(ClientHook):
    r"""Pulls a client's model to its mixture :math:`u_i`, which the server makes of all models.

    Its arguments are those of :class:`FedAMP`.
    """

    messages = (Down(_NAME, per_client=True), Up(_NAME, merge="keep"))
    personal_model = True
    needs_global = False

    def __init__(self, strength: float, alpha: float, sigma: float) -> None:
        check_number("algorithm.strength", strength, at_least=0)
        check_number("algorithm.alpha", alpha, above=0)
        check_number("algorithm.sigma", sigma, above=0)
        self.strength = strength
        self.alpha = alpha
        self.sigma = sigma

    def on_update_start(self, context: ClientContext) -> None:
        """Take up the mixture; a client that is new has none."""
        context.scratch[_NAME] = context.received_extra(_NAME)

    @torch.no_grad()
    def on_before_optimizer_step(self, context: ClientContext) -> None:
        r"""Add :math:`\frac{\lambda}{\alpha} (w_i - u_i)`."""
        mixture = context.scratch[_NAME]
        for key, gradient in context.gradients().items():
            if key in mixture:
                away = context.parameters[key] - mixture[key]
                gradient.add_(away, alpha=self.strength / self.alpha)

    def on_update_end(self, context: ClientContext) -> None:
        """Send the weights."""
        context.send_extra(_NAME, context.weights())

    def on_aggregate(self, aggregation: Aggregation) -> State:
        """Return the models that have come in, by client."""
        return {
            f"{_NAME}/{client}/{key}": value
            for client, values in aggregation.individual
            for key, value in under(values, _NAME).items()
        }

    @torch.no_grad()
    def broadcast(self, state: Mapping[str, Tensor], client: int) -> State:
        """Return the client's mixture of the models that the server has, by name and key."""
        numbers = sorted({int(name.split("/")[1]) for name in state})
        models = {number: under(state, f"{_NAME}/{number}") for number in numbers}
        own = models.pop(client, {})
        total, mixed = 0.0, {k: torch.zeros_like(v, dtype=_wide(v)) for k, v in own.items()}
        for other in models.values():
            away = sum(float((v.to(_wide(v)) - other[k]).square().sum()) for k, v in own.items())
            weight = self.alpha / self.sigma * math.exp(-away / self.sigma)
            total += weight
            for key, value in mixed.items():
                value.add_(other[key], alpha=weight)
        return {
            f"{_NAME}/{key}": (mixed[key] + (1 - total) * value).to(value.dtype)
            for key, value in own.items()
        }


def _wide(value: Tensor) -> torch.dtype:
    return widest_float(value.device)


class FedAMP(Algorithm):
    r"""Federated attentive message passing.

    Models stay with the clients: there is no global one. A client minimises
    :math:`F_i(w) + \frac{\lambda}{2 \alpha} \|w - u_i\|^2` from its own last model and sends it. Of
    the last models of all clients that have trained so far the server makes
    :math:`u_i = (1 - \sum_{j \ne i} \xi_{ij})\, w_i + \sum_{j \ne i} \xi_{ij} w_j` with
    :math:`\xi_{ij} = \alpha\, A'(\|w_i - w_j\|^2)` and :math:`A(x) = 1 - e^{-x / \sigma}`, so
    :math:`A'(x) = e^{-x / \sigma} / \sigma`. A client that is new has no :math:`u_i` and trains
    alone.

    With :math:`m` clients, :math:`\alpha \le \sigma / (m - 1)` makes every mixture a mean. In the
    paper all clients take part in every round; here those that do not keep the models that they
    have sent before. The server holds a model of every client, for tens of clients and not for
    thousands. Buffers are the clients' own.

    Args:
        strength: :math:`\lambda`: with 0 it is local training.
        alpha: :math:`\alpha`, the server's step; the paper lets it shrink over rounds.
        sigma: Squared distance :math:`\sigma` at which a model's weight has fallen to 1/e.
        **choices: Those of :class:`Algorithm`.

    Source:
        Huang, Chu, Zhou, Wang, Liu, Pei, Zhang. Personalized Cross-Silo Federated Learning on
        Non-IID Data. AAAI 2021. https://arxiv.org/abs/2007.03797

    Example:
        >>> FedAMP(alpha=1.0).share
        'none'
    """

    def __init__(
        self, strength: float = 0.5, alpha: float = 5.0, sigma: float = 100.0, **choices: Any
    ) -> None:
        super().__init__(
            train="full", share="none", local=[AttentivePull(strength, alpha, sigma)], **choices
        )
