"""Iterative data smoothing: labels move towards the model, slower than it moves towards them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fedlightning.algorithms.algorithm import Algorithm
from fedlightning.algorithms.method import ClientHook
from fedlightning.core.batches import Batch
from fedlightning.core.validation import check_number
from fedlightning.errors import ConfigError

if TYPE_CHECKING:
    from fedlightning.algorithms.context import ClientContext

__all__ = ["IterativeDataSmoothing", "SmoothedLabels"]

_NAME = "ids:labels"


class SmoothedLabels(ClientHook):
    """Trains on labels of the client's own, one a comparison, that it updates after each epoch.

    Args:
        beta: How far labels move towards the model's probabilities.
    """

    needs_global = False

    def __init__(self, beta: float = 0.3) -> None:
        self.beta = float(check_number("algorithm.beta", beta, at_least=0, at_most=1))

    def on_update_start(self, context: ClientContext) -> None:
        """Take up the labels that the client has kept; at first those of its data."""
        labels = context.kept_values(_NAME)
        if labels is None:
            labels = torch.cat([_labels(batch).cpu() for batch in context.stored_batches()])
        if len(labels) != context.num_examples:
            raise ConfigError(
                f"client {context.client} has kept {len(labels)} labels and has "
                f"{context.num_examples} examples; its data must not change."
            )
        context.scratch[_NAME] = labels.clone()

    def local_step(self, context: ClientContext, batch: Batch, batch_idx: int) -> Tensor | None:
        """Train on the batch with the client's present labels."""
        given, places = _labels(batch), context.positions(batch_idx)
        if len(places) != len(given):
            raise ConfigError(
                f"batch {batch_idx} has {len(given)} examples where the data's epoch_batches() "
                f"says {len(places)}; data with its own batches() needs its own epoch_batches()."
            )
        own = context.scratch[_NAME][places].to(given.device, given.dtype)
        loss = context.gradient((batch[0], own), batch_idx)
        context.update(batch_idx)
        return loss

    def on_epoch_end(self, context: ClientContext, epoch: int) -> None:
        """Move every label towards the present model's probability."""
        if not self.beta:
            return
        with context.evaluating():
            probabilities = torch.cat(
                [_probabilities(context, batch) for batch in context.stored_batches()]
            )
        labels = context.scratch[_NAME]
        context.scratch[_NAME] = torch.lerp(labels, probabilities.to(labels), self.beta)

    def on_update_end(self, context: ClientContext) -> None:
        """Keep the labels."""
        context.keep_values(_NAME, context.scratch[_NAME])


class IterativeDataSmoothing(Algorithm):
    r"""Iterative data smoothing of preferences, in the manner of IDS; each client an annotator.

    A comparison :math:`i` of two items has a label :math:`y_i \in [0, 1]`, the probability that the
    first is preferred, at first 0 or 1. In each local epoch a client trains on the mean of
    :math:`-[y_i \log p_i + (1 - y_i) \log(1 - p_i)]`, then sets
    :math:`y_i \leftarrow (1 - \beta) y_i + \beta p_i` for all its comparisons, with
    :math:`p_i = \sigma(r(a_i) - r(b_i))` of the new model, in eval mode and without gradient. The
    labels outlive rounds in which the client is not chosen, and never leave it. Models are averaged
    by number of comparisons. With :math:`\beta = 0` it is maximum likelihood by FedAvg.

    Batches are (pairs, labels) with floating-point labels of shape (n,), and ``module(pairs)``
    returns the gaps :math:`r(a) - r(b)`, shape (n,), as
    :class:`~fedlightning.models.RewardTable` and :class:`~fedlightning.models.RewardMLP` do. Where
    ``trainer.limit_train_batches`` leaves examples out, their labels move all the same.

    Deviations: the paper is not about federated learning. The formula follows its abstract and
    other people's code; whether its loss is a sum or a mean, and its :math:`\alpha` and
    :math:`\beta`, are not known here.

    What can be said: this is in the manner of IDS, with soft labels updated after each epoch. It
    is not a general remedy for label noise, and none of the paper's results is claimed.

    Args:
        beta: :math:`\beta`; 0.1 to 0.3 did best in small experiments, others use 0.7.
        **choices: Those of :class:`Algorithm`.

    Raises:
        ConfigError: If ``beta`` is not in [0, 1].

    Source:
        Zhu, Jordan, Jiao. Iterative Data Smoothing: Mitigating Reward Overfitting and
        Overoptimization in RLHF. ICML 2024. https://arxiv.org/abs/2401.16335
    """

    def __init__(self, beta: float = 0.3, **choices: Any) -> None:
        super().__init__(local=[SmoothedLabels(beta)], **choices)


def _labels(batch: Any) -> Tensor:
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        labels = batch[1]
        if isinstance(labels, Tensor) and labels.ndim == 1 and labels.is_floating_point():
            return labels.double() if labels.dtype == torch.float64 else labels.float()
    raise ConfigError(
        "IterativeDataSmoothing needs batches (pairs, labels) with one floating-point label in "
        "[0, 1] a comparison; ZipfPreferences and DigitPreferences have such."
    )


def _probabilities(context: ClientContext, batch: Any) -> Tensor:
    gaps = context.module(batch[0])
    if not isinstance(gaps, Tensor) or gaps.shape != batch[1].shape:
        raise ConfigError(
            f"IterativeDataSmoothing needs a forward pass that returns the gap of each pair, shape "
            f"({len(batch[1])},), and {type(context.module).__name__} returns something else."
        )
    return gaps.double().sigmoid()
