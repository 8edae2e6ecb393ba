"""APFL: a client's model is a mixture of the global model and one of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fedlightning.algorithms.algorithm import Algorithm
from fedlightning.algorithms.method import ClientHook
from fedlightning.core.batches import Batch
from fedlightning.core.state import State, under
from fedlightning.core.validation import check_number

if TYPE_CHECKING:
    from fedlightning.algorithms.context import ClientContext

__all__ = ["APFL", "Mixture"]

_NAME = "apfl"
_ALPHA = f"{_NAME}:alpha"


class Mixture(ClientHook):
    r"""Trains :math:`v_i` through :math:`\bar v_i = \alpha_i v_i + (1 - \alpha_i) w_i`.

    Args:
        alpha: :math:`\alpha_i` at first.
        adaptive: Whether every client learns its own :math:`\alpha_i`, one step per client update.
    """

    personal_model = True

    def __init__(self, alpha: float, adaptive: bool) -> None:
        check_number("algorithm.alpha", alpha, at_least=0, at_most=1)
        self.alpha = alpha
        self.adaptive = adaptive

    def on_update_start(self, context: ClientContext) -> None:
        """Take up the client's own model: at first the global one that it received."""
        own = context.kept(_NAME) or context.trained_state()
        weights = {key: own[key].clone().requires_grad_() for key in context.parameters}
        buffers = {key: value.clone() for key, value in own.items() if key not in weights}
        kept = context.kept_values(_ALPHA)
        context.scratch[_NAME] = {
            "weights": weights,
            "buffers": buffers,
            "alpha": float(kept) if kept is not None else self.alpha,
            "optimizer": context.optimizer_like(weights),
            "adapt": self.adaptive,
        }

    def local_step(self, context: ClientContext, batch: Batch, batch_idx: int) -> Tensor | None:
        """Take the gradients at both models where they are, then move both."""
        own = context.scratch[_NAME]
        loss = context.gradient(batch, batch_idx)
        gradients, weights, alpha = context.gradients(), context.weights(), own["alpha"]
        mixed = {
            key: alpha * v.detach() + (1 - alpha) * weights[key]
            for key, v in own["weights"].items()
        }
        with context.no_logging(), context.swapped_weights(mixed, own["buffers"]):
            context.gradient(batch, batch_idx)
            slope = context.gradients()
        if own["adapt"]:
            own["adapt"] = False
            own["alpha"] = self._adapted(alpha, slope, own["weights"], weights, context.lr)
        for key, v in own["weights"].items():
            v.grad = alpha * slope[key] if key in slope else None
        context.step_optimizer(own["optimizer"])
        context.set_gradients(gradients)
        context.update(batch_idx)
        return loss

    def on_update_end(self, context: ClientContext) -> None:
        """Keep the client's own model and its share in the mixture."""
        own = context.scratch[_NAME]
        weights = {key: value.detach() for key, value in own["weights"].items()}
        context.keep(_NAME, {**weights, **own["buffers"]})
        context.keep_values(_ALPHA, torch.tensor(own["alpha"], dtype=torch.float64))

    def personal(self, kept: Mapping[str, Tensor], model: State) -> State:
        """Return the mixture of the client's own model and the present global one."""
        if _ALPHA not in kept:
            return {}
        alpha, own = float(kept[_ALPHA]), under(kept, _NAME)
        return {
            key: alpha * value + (1 - alpha) * model[key].to(value.device)
            if value.is_floating_point() or value.is_complex()
            else value
            for key, value in own.items()
        }

    @staticmethod
    @torch.no_grad()
    def _adapted(
        alpha: float, slope: State, own: Mapping[str, Tensor], shared: State, rate: float
    ) -> float:
        gradient = sum(
            float((slope[key].double() * (own[key].double() - shared[key].double())).sum())
            for key in slope
        )
        return min(max(alpha - rate * gradient, 0.0), 1.0)


class APFL(Algorithm):
    r"""Adaptive personalized federated learning.

    In every local step :math:`w_i \leftarrow w_i - \eta \nabla f_i(w_i)` and
    :math:`v_i \leftarrow v_i - \eta\, \alpha_i \nabla f_i(\bar v_i)` with
    :math:`\bar v_i = \alpha_i v_i + (1 - \alpha_i) w_i`; clients send :math:`w_i`. Once per update
    :math:`\alpha_i \leftarrow \alpha_i - \eta \langle \nabla f_i(\bar v_i), v_i - w_i \rangle`,
    within [0, 1]. A client's model is its :math:`v_i` mixed with the present global model; of
    BatchNorm statistics, too, it has the mixture.

    Args:
        alpha: The share :math:`\alpha_i` of the client's own model at first.
        adaptive: Whether clients learn it.
        **choices: Those of :class:`Algorithm`. The paper's mean is uniform over the cohort,
            ``weights="uniform"``; the default weighs by examples, as FedAvg does.

    Source:
        Deng, Kamani, Mahdavi. Adaptive Personalized Federated Learning. 2020.
        https://arxiv.org/abs/2003.13461
    """

    def __init__(self, alpha: float = 0.5, adaptive: bool = True, **choices: Any) -> None:
        super().__init__(local=[Mixture(alpha, adaptive)], **choices)
