"""Per-FedAvg: train for a model from which every client gets far in one step of its own."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor

from fedlightning.algorithms.algorithm import Algorithm
from fedlightning.algorithms.method import ClientHook
from fedlightning.core.batches import Batch, split_batch
from fedlightning.core.state import State
from fedlightning.core.validation import check_number
from fedlightning.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from fedlightning.algorithms.context import ClientContext
    from fedlightning.algorithms.finetuning import FineTuning

__all__ = ["MetaBatches", "MetaGradient", "OneStep", "PerFedAvg", "Variant"]

Variant = Literal["first_order", "hessian_free", "exact"]
MetaBatches = Literal["split", "same"]


class MetaGradient(ClientHook):
    r"""Steps along :math:`(I - \alpha \nabla^2 f(w; D'')) \nabla f(w - \alpha \nabla f(w; D); D')`.

    Args:
        alpha: Step size of the adaptation.
        variant: ``first_order`` leaves the Hessian out; ``hessian_free`` takes it by a difference
            of two gradients; ``exact`` differentiates twice.
        delta: Length of that difference, for ``hessian_free``.
        batches: ``split`` divides a local batch into :math:`D`, :math:`D'` and :math:`D''`;
            ``same`` takes all of it for each.
    """

    needs_global = False
    batches: MetaBatches = "split"

    def __init__(
        self, alpha: float, variant: Variant, delta: float, batches: MetaBatches = "split"
    ) -> None:
        check_number("algorithm.alpha", alpha, above=0)
        check_number("algorithm.delta", delta, above=0)
        for name, value, choices in (
            ("variant", variant, get_args(Variant)), ("batches", batches, get_args(MetaBatches)),
        ):  # fmt: skip
            if value not in choices:
                raise ConfigError(
                    f"algorithm.{name} must be one of {', '.join(choices)}, got {value!r}."
                    f"{did_you_mean(str(value), choices)}"
                )
        self.alpha = alpha
        self.variant = variant
        self.delta = delta
        if batches != "split":  # the default is not shown: checkpoints of 0.1 do not have it
            self.batches = batches

    def local_step(self, context: ClientContext, batch: Batch, batch_idx: int) -> Tensor | None:
        """Adapt, take the gradient there, and step from where the client was."""
        hessian = self.variant != "first_order"
        inner, outer, *third = self._roles(batch, 3 if hessian else 2)
        with context.no_logging(), self._same_draws(context):
            context.gradient(inner, batch_idx)
        weights = context.weights()
        context.add_to_weights(context.gradients(), -self.alpha)
        with self._same_draws(context) if hessian else nullcontext():
            loss = context.gradient(outer, batch_idx)
        meta = context.gradients()
        context.set_weights(weights)
        if hessian:
            with context.no_logging():
                product = (
                    context.hessian_product(third[0], batch_idx, meta)
                    if self.variant == "exact"
                    else self._difference(context, third[0], batch_idx, meta)
                )
            changes = [product[key] for key in meta]
            torch._foreach_sub_(list(meta.values()), changes, alpha=self.alpha)
        context.set_gradients(meta)
        context.update(batch_idx)
        return loss

    def _roles(self, batch: Batch, count: int) -> list[Batch]:
        return [batch] * count if self.batches == "same" else split_batch(batch, count)

    def _same_draws(self, context: ClientContext) -> AbstractContextManager[None]:
        """Let the next role of one batch see the same dropout: then it is one function of w."""
        return context.replay_rng() if self.batches == "same" else nullcontext()

    def _difference(
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


class OneStep(ClientHook):
    r"""Has a client predict with :math:`w - \alpha \nabla f_i(w)`, one step from the global model.

    :math:`f_i` is the mean training loss over all of the client's training examples, in eval mode.
    The step is taken where the client is personalised, and nothing is kept.

    Args:
        alpha: Step size :math:`\alpha`.
    """

    def __init__(self, alpha: float) -> None:
        check_number("algorithm.alpha", alpha, above=0)
        self.alpha = alpha

    def fit_personal(self, tuning: FineTuning) -> State:
        """Return the weights after the step."""
        weights = dict(tuning.module.named_parameters())
        return {
            key: weights[key].detach() - self.alpha * slope
            for key, slope in tuning.gradient({}).items()
        }


class PerFedAvg(Algorithm):
    r"""Personalized FedAvg (MAML over clients).

    A local batch is divided into :math:`D`, :math:`D'` (and :math:`D''`). A step is
    :math:`\tilde w = w - \alpha \nabla f(w; D)`, then
    :math:`w \leftarrow w - \beta (I - \alpha \nabla^2 f(w; D'')) \nabla f(\tilde w; D')`, where the
    first-order variant drops the Hessian and the Hessian-free one replaces its product with
    :math:`v` by :math:`(\nabla f(w + \delta v) - \nabla f(w - \delta v)) / 2 \delta`. The exact one
    differentiates twice, which needs about the time of the Hessian-free one and more memory.
    :math:`\beta` is the learning rate of the module's optimizer. A batch with fewer than two
    examples for each stands for all of them. Personalise with one epoch (or few) at learning rate
    :math:`\alpha`, the whole network, or with ``personal_step``.

    Args:
        alpha: Step size :math:`\alpha` of the adaptation.
        variant: ``first_order``, ``hessian_free`` or ``exact``.
        delta: :math:`\delta` of the Hessian-free variant.
        batches: ``same`` takes the whole batch, under the same dropout, for :math:`D`, :math:`D'`
            and :math:`D''`: then a step is along the gradient of
            :math:`f(w - \alpha \nabla f(w))` itself, a biased one of its expectation.
        personal_step: Whether a client's own model is one step from the global one, on all of its
            training examples (see :class:`OneStep`).
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
        batches: MetaBatches = "split",
        personal_step: bool = False,
        **choices: Any,
    ) -> None:
        local: list[ClientHook] = [MetaGradient(alpha, variant, delta, batches)]
        super().__init__(local=[*local, *([OneStep(alpha)] if personal_step else [])], **choices)
