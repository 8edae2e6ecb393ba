"""FedDyn: every client's loss has a term that moves its optimum to that of the mean loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fedlightning.algorithms.algorithm import Algorithm, Weights
from fedlightning.algorithms.fedprox import pull
from fedlightning.algorithms.method import ClientHook
from fedlightning.algorithms.server_step import ServerOptimizer
from fedlightning.core.state import State
from fedlightning.core.validation import check_number

if TYPE_CHECKING:
    from fedlightning.algorithms.context import ClientContext

__all__ = ["DynamicRegularizer", "FedDyn", "ServerDyn"]

_NAME = "feddyn"


class DynamicRegularizer(ClientHook):
    r"""Adds :math:`-\langle g_k, \theta \rangle + \frac{\alpha}{2} \|\theta - \theta^{t-1}\|^2`.

    :math:`g_k` is the client's own, zero at first, and of the parameters that it shares.

    Args:
        alpha: Strength :math:`\alpha` of the term.
    """

    needs_whole = True  # the server's h is the mean of the clients' g_k

    def __init__(self, alpha: float) -> None:
        check_number("algorithm.alpha", alpha, above=0)
        self.alpha = alpha

    def on_update_start(self, context: ClientContext) -> None:
        """Take up the client's gradient."""
        own = context.kept(_NAME)
        context.scratch[_NAME] = {
            key: own.get(key, torch.zeros_like(p))
            for key, p in context.parameters.items()
            if key in context.shared
        }

    @torch.no_grad()
    def on_before_optimizer_step(self, context: ClientContext) -> None:
        """Add the term's gradient."""
        own = context.scratch[_NAME]
        present = {key: g for key, g in context.gradients().items() if key in own}
        if present:
            torch._foreach_sub_(list(present.values()), [own[key] for key in present])
            pull(context, self.alpha)

    @torch.no_grad()
    def on_update_end(self, context: ClientContext) -> None:
        r"""Keep :math:`g_k - \alpha (\theta_k - \theta^{t-1})`."""
        now, start = context.weights(), context.received
        own = context.scratch[_NAME]
        moved = {key: g - self.alpha * (now[key] - start[key]) for key, g in own.items()}
        context.keep(_NAME, moved)


class ServerDyn(ServerOptimizer):
    r"""The server's half of :class:`FedDyn`, which says what it does.

    Args:
        alpha: That of the clients.
    """

    def __init__(self, alpha: float) -> None:
        check_number("algorithm.alpha", alpha, above=0)
        self.alpha = alpha

    def start(self, parameters: Mapping[str, Tensor]) -> State:
        """Return zeros."""
        return {f"h/{key}": torch.zeros_like(value) for key, value in parameters.items()}

    @torch.no_grad()
    def move(
        self,
        model: Mapping[str, Tensor],
        mean: Mapping[str, Tensor],
        state: Mapping[str, Tensor],
        clients: int,
        among: int,
    ) -> tuple[State, State]:
        r"""Return :math:`\overline{\theta_k} - h^t / \alpha` and :math:`h^t`."""
        moved, after = {}, {}
        for key, now in model.items():
            h = state[f"h/{key}"] - self.alpha * clients / among * (mean[key] - now)
            moved[key], after[f"h/{key}"] = (mean[key] - h / self.alpha).to(now.dtype), h
        return moved, after


class FedDyn(Algorithm):
    r"""Federated learning with dynamic regularization.

    A chosen client minimises
    :math:`L_k(\theta) - \langle g_k, \theta \rangle + \frac{\alpha}{2} \|\theta -
    \theta^{t-1}\|^2` from the global model :math:`\theta^{t-1}` and takes
    :math:`g_k \leftarrow g_k - \alpha (\theta_k - \theta^{t-1})`, which is the gradient of its loss
    where it ends if it gets to the minimum. Of :math:`m` clients :math:`P` take part; the server
    takes :math:`h \leftarrow h - \frac{\alpha}{m} \sum_{k \in P} (\theta_k - \theta^{t-1})` and
    :math:`\theta^t = \frac{1}{|P|} \sum_{k \in P} \theta_k - h / \alpha`.

    Local epochs stand for the minimum. With other weights than uniform ones, means take the places
    of both sums. Buffers and parts that stay with the clients have no term.

    Args:
        alpha: Strength :math:`\alpha` of the term; the paper tries 0.001 to 0.1. The published code
            divides it by a client's share of all examples, which this one does not.
        weights: Weights of the mean; the paper's is uniform.
        **choices: Those of :class:`Algorithm`.

    Source:
        Acar, Zhao, Matas Navarro, Mattina, Whatmough, Saligrama. Federated Learning Based on
        Dynamic Regularization. ICLR 2021. https://arxiv.org/abs/2111.04263

    Example:
        >>> FedDyn(alpha=0.1).server
        ServerDyn(alpha=0.1)
    """

    def __init__(
        self, alpha: float = 0.01, weights: Weights | None = "uniform", **choices: Any
    ) -> None:
        super().__init__(
            local=[DynamicRegularizer(alpha)], server=ServerDyn(alpha), weights=weights, **choices
        )
