"""Norm clipping: no client moves the model further than a given distance."""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from fedlightning.algorithms.aggregation.base import (
    Accumulator,
    Aggregator,
    check_weight,
    floats_of,
    require_finite,
)
from fedlightning.algorithms.aggregation.buffered import Gathered
from fedlightning.algorithms.aggregation.mean import WeightedMean
from fedlightning.core.state import State, Sums, widest_float
from fedlightning.core.validation import check_number

__all__ = ["NormClipping"]


class NormClipping(Aggregator):
    r"""The weighted mean of updates whose length is bounded.

    .. math:: \theta \leftarrow \theta_0 + \sum_i \frac{w_i}{\sum_j w_j}\,
        \min\left(1, \frac{C}{\lVert \theta_i - \theta_0 \rVert}\right) (\theta_i - \theta_0)

    where :math:`\theta_0` is the global model and :math:`C` is ``max_norm``. The norm is over all
    parameters together, in float64. Buffers are averaged as they are, so a hostile client can still
    move BatchNorm's statistics; :class:`CoordinateMedian` bounds these too. Weights are kept: a
    client that claims many examples counts for many.

    Args:
        max_norm: The largest L2 norm of an update. ``median`` takes the median of the round's
            norms, which needs no tuning and memory for the whole cohort.

    Raises:
        ConfigError: If it is not a finite number > 0, nor ``median``.

    Source:
        Sun, Kairouz, Suresh, McMahan. Can You Really Backdoor Federated Learning? 2019.
        https://arxiv.org/abs/1911.07963. The median: Nguyen et al. FLAME: Taming Backdoors in
        Federated Learning. USENIX Security 2022. https://arxiv.org/abs/2101.02281

    Example:
        >>> merge = NormClipping(max_norm=5.0).start({"w": torch.zeros(2)}, parameters=["w"])
        >>> merge.push({"w": torch.tensor([1.0, 0.0])}, weight=1)
        >>> merge.push({"w": torch.tensor([300.0, 400.0])}, weight=1)
        >>> merge.result()
        {'w': tensor([2., 2.])}
    """

    def __init__(self, max_norm: float | Literal["median"]) -> None:
        if max_norm != "median":
            check_number("federation.aggregator.max_norm", max_norm, above=0, other="'median'")
        self.max_norm = max_norm

    def start(
        self, reference: Mapping[str, Tensor], parameters: Collection[str], sums: Sums = "float64"
    ) -> Accumulator:
        """Start the merging of one round."""
        if not isinstance(self.max_norm, str):
            return _ClippedMean(reference, parameters, self.max_norm, sums)

        def clipped_to_median(states: Sequence[State], weights: Sequence[float]) -> State:
            norms = [update_norm(state, reference, parameters) for state in states]
            mean = _ClippedMean(reference, parameters, statistics.median(norms), sums)
            for state, weight in zip(states, weights, strict=True):
                mean.push(state, weight)
            return mean.result()

        return Gathered(self, reference, clipped_to_median)


class _ClippedMean:
    """A weighted mean that clips each state as it comes in, so that it need keep none of them."""

    def __init__(
        self,
        reference: Mapping[str, Tensor],
        parameters: Collection[str],
        max_norm: float,
        sums: Sums,
    ) -> None:
        self._reference = reference
        self._parameters = parameters
        self._max_norm = max_norm
        self._mean = WeightedMean(sums)

    @torch.no_grad()
    def push(self, state: Mapping[str, Tensor], weight: float) -> None:
        """Take one client's state in; it may be overwritten afterwards."""
        check_weight(weight)
        values = floats_of(state, self._reference)
        require_finite(values)
        norm = update_norm(values, self._reference, self._parameters)
        share = 1.0 if norm <= self._max_norm else self._max_norm / norm
        self._mean.push(
            {key: self._clip(key, value, share) for key, value in values.items()}, weight
        )

    def result(self) -> State:
        """Return the mean, each tensor in its own dtype."""
        return {
            key: value.to(self._reference[key].dtype) for key, value in self._mean.result().items()
        }

    def _clip(self, key: str, value: Tensor, share: float) -> Tensor:
        wide = value.to(widest_float(value.device))
        if share == 1.0 or key not in self._parameters:
            return wide
        # a mean of two finite numbers, where reference + share * (value - reference) may overflow
        return (1.0 - share) * self._reference[key].to(wide.dtype) + share * wide


def update_norm(
    state: Mapping[str, Tensor], reference: Mapping[str, Tensor], parameters: Collection[str]
) -> float:
    """Return the L2 norm of ``state - reference`` over the parameters, taken in float64.

    Example:
        >>> update_norm({"w": torch.tensor([4.0, 4.0])}, {"w": torch.tensor([1.0, 0.0])}, ["w"])
        5.0
    """
    return math.hypot(
        *(
            float(torch.linalg.vector_norm(value.to(wide) - reference[key].to(wide)))
            for key, value in state.items()
            if key in parameters
            for wide in (widest_float(value.device),)
        )
    )
