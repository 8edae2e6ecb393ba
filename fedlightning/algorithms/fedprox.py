"""FedProx: local training is pulled towards the global model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fedlightning.algorithms.algorithm import Algorithm
from fedlightning.algorithms.method import ClientHook
from fedlightning.core.validation import check_number

if TYPE_CHECKING:
    from fedlightning.algorithms.context import ClientContext

__all__ = ["FedProx", "Proximal"]


class Proximal(ClientHook):
    r"""Adds :math:`\frac{\mu}{2} \|w - w_t\|^2` to the local loss, by its gradient.

    Args:
        mu: Strength of the pull towards :math:`w_t`, the global model of the round.
    """

    def __init__(self, mu: float) -> None:
        check_number("algorithm.mu", mu, at_least=0)
        self.mu = mu

    def on_before_optimizer_step(self, context: ClientContext) -> None:
        """Add the term's gradient."""
        if self.mu:
            pull(context, self.mu)


@torch.no_grad()
def pull(context: ClientContext, strength: float) -> None:
    """Add the gradient of a pull towards the model that the client received.

    What stays with the client (a head of its own) is in no global model, and not pulled.
    """
    gradients = {key: g for key, g in context.gradients().items() if key in context.shared}
    if gradients:
        present: list[Tensor] = [context.parameters[key] for key in gradients]
        away = torch._foreach_sub(present, [context.received[key] for key in gradients])
        torch._foreach_add_(list(gradients.values()), away, alpha=strength)


class FedProx(Algorithm):
    r"""FedAvg with a proximal term.

    Clients minimise :math:`F_i(w) + \frac{\mu}{2} \|w - w_t\|^2` from the global model
    :math:`w_t`; the server averages as in FedAvg. All clients do all their local epochs. What
    another algorithm leaves with the clients (FedPer's heads) is not pulled.

    Args:
        mu: Strength of the proximal term; the paper tries 0.001 to 1.
        **choices: Those of :class:`Algorithm`. The paper's mean is uniform over a cohort
            drawn in proportion to examples,
            ``weights="uniform"``; the default weighs by examples, as FedAvg does.

    Source:
        Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith. Federated Optimization in Heterogeneous
        Networks. MLSys 2020. https://arxiv.org/abs/1812.06127
    """

    def __init__(self, mu: float = 0.01, **choices: Any) -> None:
        super().__init__(local=[Proximal(mu)], **choices)
