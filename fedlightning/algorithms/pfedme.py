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
from fedlightning.core.proximal import proximal_point
from fedlightning.core.state import State, under
from fedlightning.core.validation import check_integer, check_number
from fedlightning.errors import ConfigError

if TYPE_CHECKING:
    from fedlightning.algorithms.context import ClientContext
    from fedlightning.algorithms.finetuning import FineTuning

__all__ = ["MoreauEnvelope", "PFedMe", "SolvedEnvelope"]

_NAME = "pfedme"
_MOST_STEPS = 100  # for a client's own model


class MoreauEnvelope(ClientHook):
    r"""Solves :math:`\min_\theta f(\theta) + \frac{\lambda}{2} \|\theta - w\|^2` in every batch.

    Args:
        strength: :math:`\lambda`.
        inner_steps: Optimizer steps for each of these problems.
        lr: Step size of :math:`w`; ``None`` means the optimizer's learning rate.
        tolerance: :math:`\nu`: norm of the problem's gradient at which it is solved, and the steps
            end; ``None`` takes all of them.
    """

    personal_model = True
    whole_step = True
    tolerance: float | None = None

    def __init__(
        self, strength: float, inner_steps: int, lr: float | None, tolerance: float | None = None
    ) -> None:
        check_number("algorithm.strength", strength, above=0)
        if lr is not None:
            check_number("algorithm.lr", lr, above=0)
        check_integer("algorithm.inner_steps", inner_steps, at_least=1)
        self.strength = strength
        self.inner_steps = inner_steps
        self.lr = lr
        if tolerance is not None:  # none is not shown: checkpoints of 0.1 do not have it
            self.tolerance = check_number("algorithm.tolerance", tolerance, at_least=0)

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
        if not self._solved(context):
            context.update(batch_idx)
            with context.no_logging():
                for _ in range(self.inner_steps - 1):
                    context.gradient(batch, batch_idx)
                    if self._solved(context):
                        break
                    context.update(batch_idx)
        context.set_gradients({})
        rate = self.strength * (self.lr if self.lr is not None else context.lr)
        with torch.no_grad():
            for key, local in context.scratch[_NAME].items():
                local.add_(local - context.parameters[key], alpha=-rate)
        return loss

    def _solved(self, context: ClientContext) -> bool:
        """Whether the gradient of the inner problem is small enough where the client is."""
        if self.tolerance is None:
            return False
        local = context.scratch[_NAME]
        with torch.no_grad():
            slopes = [
                slope + self.strength * (context.parameters[key] - local[key])
                for key, slope in context.gradients().items()
            ]
            norms = torch._foreach_norm(slopes)
            return not norms or float(torch.stack(norms).norm()) <= self.tolerance

    def on_update_end(self, context: ClientContext) -> None:
        """Keep the client's own model; leave the local one in the module, to be sent."""
        context.keep(_NAME, context.trained_state())
        context.set_weights(context.scratch[_NAME])

    def personal(self, kept: Mapping[str, Tensor], model: State) -> State:
        """Return the client's own model."""
        return under(kept, _NAME)


class SolvedEnvelope(MoreauEnvelope):
    """The same, but a client's own model is solved for anew where it is evaluated.

    On all of its training examples, in eval mode, from the global model, whether it ever trained or
    not; nothing is kept.

    Its arguments are those of :class:`MoreauEnvelope`, with a tolerance.
    """

    personal_model = False

    def __init__(
        self, strength: float, inner_steps: int, lr: float | None, tolerance: float | None
    ) -> None:
        if tolerance is None:
            raise ConfigError(
                "algorithm.personal_solve needs a tolerance, at which a client's own model is "
                "solved for; set algorithm.tolerance, such as 0.01."
            )
        super().__init__(strength, inner_steps, lr, tolerance)

    def on_update_end(self, context: ClientContext) -> None:
        """Leave the local model in the module, to be sent."""
        context.set_weights(context.scratch[_NAME])

    def fit_personal(self, tuning: FineTuning) -> State:
        """Return the solution; see :func:`~fedlightning.core.proximal.proximal_point`."""
        weights = dict(tuning.module.named_parameters())
        start = {key: weights[key].detach().clone() for key in tuning.gradient({})}
        assert self.tolerance is not None
        return proximal_point(tuning.gradient, start, self.strength, self.tolerance, _MOST_STEPS)


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
        tolerance: :math:`\nu`: the inner steps end when the norm of the gradient of
            :math:`f_i(\theta) + \frac{\lambda}{2} \|\theta - w_i\|^2` on the batch is at most this
            (before clipping, without the optimizer's weight decay); ``None`` always takes
            ``inner_steps``.
        personal_solve: Whether a client's own model is solved for, up to the tolerance, where it is
            evaluated, from the global model and on all of its training examples; else it is
            :math:`\theta_i` of its last batch, which it keeps.
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
        tolerance: float | None = None,
        personal_solve: bool = False,
        **choices: Any,
    ) -> None:
        check_number("algorithm.beta", beta, above=0)
        server = ServerSGD(beta) if beta != 1 else None
        envelope = SolvedEnvelope if personal_solve else MoreauEnvelope
        local: list[ClientHook] = [envelope(strength, inner_steps, lr, tolerance)]
        super().__init__(local=local, server=server, **choices)
