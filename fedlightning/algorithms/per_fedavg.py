"""Per-FedAvg: train for a model from which every client gets far in one step of its own."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from fedlightning.algorithms.algorithm import Algorithm
from fedlightning.algorithms.method import ClientHook
from fedlightning.core.batches import Batch, split_batch
from fedlightning.core.validation import check_number
from fedlightning.errors import ConfigError

if TYPE_CHECKING:
    from fedlightning.algorithms.context import ClientContext

__all__ = ["MetaGradient", "PerFedAvg", "Variant"]

Variant = Literal["first_order", "hessian_free"]


class MetaGradient(ClientHook):
    r"""Steps along :math:`(I - \alpha \nabla^2 f(w; D'')) \nabla f(w - \alpha \nabla f(w; D); D')`.

    Args:
        alpha: Step size of the adaptation.
        variant: ``first_order`` leaves the Hessian out; ``hessian_free`` takes it by a difference
            of two gradients.
        delta: Length of that difference, for ``hessian_free``.
    """

    needs_global = False

    def __init__(self, alpha: float, variant: Variant, delta: float) -> None:
        check_number("algorithm.alpha", alpha, above=0)
        check_number("algorithm.delta", delta, above=0)
        if variant not in ("first_order", "hessian_free"):
            raise ConfigError(
                f"algorithm.variant must be one of first_order, hessian_free, got {variant!r}."
            )
        self.alpha = alpha
        self.variant = variant
        self.delta = delta

    def local_step(self, context: ClientContext, batch: Batch, batch_idx: int) -> Tensor | None:
        """Adapt, take the gradient there, and step from where the client was."""
        hessian = self.variant == "hessian_free"
        inner, outer, *third = split_batch(batch, 3 if hessian else 2)
        with context.no_logging():
            context.gradient(inner, batch_idx)
        weights = context.weights()
        context.add_to_weights(context.gradients(), -self.alpha)
        loss = context.gradient(outer, batch_idx)
        meta = context.gradients()
        context.set_weights(weights)
        if hessian:
            with context.no_logging():
                product = self._hessian_product(context, third[0], batch_idx, meta)
            changes = [product[key] for key in meta]
            torch._foreach_sub_(list(meta.values()), changes, alpha=self.alpha)
        context.set_gradients(meta)
        context.update(batch_idx)
        return loss

    def _hessian_product(
        self, context: ClientContext, batch: Batch, batch_idx: int, direction: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        weights = context.weights()
        slopes = []
        for sign in (1, -1):
            context.add_to_weights(direction, sign * self.delta)
            with context.replay_rng() if sign > 0 else nullcontext():  # both see the same dropout
                context.gradient(batch, batch_idx)
            slopes.append(context.gradients())
            context.set_weights(weights)
        ahead, behind = slopes
        return {key: (ahead[key] - behind[key]) / (2 * self.delta) for key in direction}


class PerFedAvg(Algorithm):
    r"""Personalized FedAvg (MAML over clients).

    A local batch is divided into :math:`D`, :math:`D'` (and :math:`D''`). A step is
    :math:`\tilde w = w - \alpha \nabla f(w; D)`, then
    :math:`w \leftarrow w - \beta (I - \alpha \nabla^2 f(w; D'')) \nabla f(\tilde w; D')`, where the
    first-order variant drops the Hessian and the Hessian-free one replaces its product with
    :math:`v` by :math:`(\nabla f(w + \delta v) - \nabla f(w - \delta v)) / 2 \delta`. :math:`\beta`
    is the learning rate of the module's optimizer. A batch with fewer than two examples for each
    stands for all of them. Personalise with one epoch (or few) at learning rate
    :math:`\alpha`, the whole network.

    Args:
        alpha: Step size :math:`\alpha` of the adaptation.
        variant: ``first_order`` or ``hessian_free``.
        delta: :math:`\delta` of the Hessian-free variant.
        **choices: Those of :class:`Algorithm`. The paper's mean is uniform over the cohort,
            ``weights="uniform"``; the default weighs by examples, as FedAvg does.

    Source:
        Fallah, Mokhtari, Ozdaglar. Personalized Federated Learning with Theoretical Guarantees: A
        Model-Agnostic Meta-Learning Approach. NeurIPS 2020. https://arxiv.org/abs/2002.07948
    """

    def __init__(
        self,
        alpha: float = 0.01,
        variant: Variant = "first_order",
        delta: float = 1e-3,
        **choices: Any,
    ) -> None:
        super().__init__(local=[MetaGradient(alpha, variant, delta)], **choices)
