"""pFedMe: clients' own models are solutions of a problem that the global model regularises."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fedlightning.algorithms.algorithm import Algorithm
from fedlightning.algorithms.method import ClientHook
from fedlightning.algorithms.server_step import ServerSGD
from fedlightning.core.batches import Batch
from fedlightning.core.state import State, under
from fedlightning.core.validation import check_integer, check_number

if TYPE_CHECKING:
    from fedlightning.algorithms.context import ClientContext

__all__ = ["MoreauEnvelope", "PFedMe"]

_NAME = "pfedme"


class MoreauEnvelope(ClientHook):
    r"""Solves :math:`\min_\theta f(\theta) + \frac{\lambda}{2} \|\theta - w\|^2` in every batch.

    Args:
        strength: :math:`\lambda`.
        inner_steps: Optimizer steps for each of these problems.
        lr: Step size of :math:`w`; ``None`` means the optimizer's learning rate.
    """

    personal_model = True
    whole_step = True

    def __init__(self, strength: float, inner_steps: int, lr: float | None) -> None:
        check_number("algorithm.strength", strength, above=0)
        if lr is not None:
            check_number("algorithm.lr", lr, above=0)
        check_integer("algorithm.inner_steps", inner_steps, at_least=1)
        self.strength = strength
        self.inner_steps = inner_steps
        self.lr = lr

    def on_update_start(self, context: ClientContext) -> None:
        """Start both models at the global one."""
        context.scratch[_NAME] = context.weights()

    @torch.no_grad()
    def on_before_optimizer_step(self, context: ClientContext) -> None:
        """Add the regulariser's gradient, towards the local model."""
        local = context.scratch[_NAME]
        for key, parameter in context.parameters.items():
            if parameter.grad is not None:
                parameter.grad.add_(parameter - local[key], alpha=self.strength)

    def local_step(self, context: ClientContext, batch: Batch, batch_idx: int) -> Tensor | None:
        """Take the inner steps, then one of the local model."""
        loss = context.gradient(batch, batch_idx)
        context.update(batch_idx)
        with context.no_logging():
            for _ in range(self.inner_steps - 1):
                context.gradient(batch, batch_idx)
                context.update(batch_idx)
        rate = self.strength * (self.lr if self.lr is not None else context.lr)
        with torch.no_grad():
            for key, local in context.scratch[_NAME].items():
                local.add_(local - context.parameters[key], alpha=-rate)
        return loss

    def on_update_end(self, context: ClientContext) -> None:
        """Keep the client's own model; leave the local one in the module, to be sent."""
        context.keep(_NAME, context.trained_state())
        context.set_weights(context.scratch[_NAME])

    def personal(self, kept: Mapping[str, Tensor], model: State) -> State:
        """Return the client's own model."""
        return under(kept, _NAME)


class PFedMe(Algorithm):
    r"""Personalized FL with Moreau envelopes.

    For every local batch a client finds
    :math:`\theta_i \approx \arg\min_\theta f_i(\theta) + \frac{\lambda}{2} \|\theta - w_i\|^2` by
    ``inner_steps`` steps of the module's optimizer, going on from the last batch's, and takes
    :math:`w_i \leftarrow w_i - \eta \lambda (w_i - \theta_i)`. The server takes
    :math:`w \leftarrow (1 - \beta) w + \beta \overline{w_i}`; :math:`\theta_i` stays with the
    client.

    Args:
        strength: :math:`\lambda`.
        inner_steps: :math:`K`.
        lr: :math:`\eta`; ``None`` means the optimizer's learning rate.
        beta: :math:`\beta`; 1 is the plain mean.
        **choices: Those of :class:`Algorithm`. The paper's mean is uniform over the cohort,
            ``weights="uniform"``; the default weighs by examples. In the paper all clients train in
            every round and the server averages some of them; here the cohort alone trains.

    Source:
        Dinh, Tran, Nguyen. Personalized Federated Learning with Moreau Envelopes. NeurIPS 2020.
        https://arxiv.org/abs/2006.08848
    """

    def __init__(
        self,
        strength: float = 15.0,
        inner_steps: int = 5,
        lr: float | None = None,
        beta: float = 1.0,
        **choices: Any,
    ) -> None:
        check_number("algorithm.beta", beta, above=0)
        server = ServerSGD(beta) if beta != 1 else None
        local: list[ClientHook] = [MoreauEnvelope(strength, inner_steps, lr)]
        super().__init__(local=local, server=server, **choices)
