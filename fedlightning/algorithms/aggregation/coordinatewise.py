"""Rules that look at each coordinate by itself: the median, and the mean without the extremes."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from fedlightning.algorithms.aggregation.base import Aggregator
from fedlightning.algorithms.aggregation.buffered import Gathered, blocks
from fedlightning.core.state import State, Sums, sum_dtype
from fedlightning.errors import ConfigError

__all__ = ["CoordinateMedian", "TrimmedMean"]


class CoordinateMedian(Aggregator):
    r"""The median of each coordinate, :math:`\theta_j \leftarrow \text{med}_i\, \theta_{i,j}`.

    Of an even number it is the mean of the middle two. Buffers are treated as parameters are.
    Weights are ignored: a client that claims many examples counts as one. More than half of the
    clients must be honest.

    Source:
        Yin, Chen, Ramchandran, Bartlett. Byzantine-Robust Distributed Learning: Towards Optimal
        Statistical Rates. ICML 2018. https://arxiv.org/abs/1803.01498

    Example:
        >>> merge = CoordinateMedian().start({"w": torch.zeros(2)}, parameters=["w"])
        >>> for w in ([1.0, 5.0], [2.0, 4.0], [1e6, -1e6]):
        ...     merge.push({"w": torch.tensor(w)}, weight=1)
        >>> merge.result()
        {'w': tensor([2., 4.])}
    """

    def start(
        self, reference: Mapping[str, Tensor], parameters: Collection[str], sums: Sums = "float64"
    ) -> Gathered:
        """Start the merging of one round."""

        def median(states: Sequence[State], weights: Sequence[float]) -> State:
            cut = (len(states) - 1) // 2
            return _by_coordinate(states, lambda block: _middle(block, cut, sums))

        return Gathered(self, reference, median)


class TrimmedMean(Aggregator):
    r"""The mean of each coordinate without its smallest and its largest values.

    .. math:: \theta_j \leftarrow \frac{1}{n - 2k} \sum_{i=k+1}^{n-k} \theta_{(i),j},
        \quad k = \lfloor \beta n \rfloor

    with :math:`\theta_{(1),j} \le \dots \le \theta_{(n),j}` and :math:`\beta` the
    ``trim_fraction``. At most :math:`k` of the clients may be hostile. Buffers are treated as
    parameters are. Weights are ignored: a client that claims many examples counts as one.

    Args:
        trim_fraction: The share to cut at either end, 0 <= ``trim_fraction`` < 0.5. With a cohort
            of fewer than ``1 / trim_fraction`` nothing is cut.

    Raises:
        ConfigError: If it is out of its range.

    Source:
        Yin, Chen, Ramchandran, Bartlett. Byzantine-Robust Distributed Learning: Towards Optimal
        Statistical Rates. ICML 2018. https://arxiv.org/abs/1803.01498

    Example:
        >>> merge = TrimmedMean(0.25).start({"w": torch.zeros(1)}, parameters=["w"])
        >>> for w in (3.0, 1.0, 1e6, 2.0):
        ...     merge.push({"w": torch.tensor([w])}, weight=1)
        >>> merge.result()
        {'w': tensor([2.5000])}
    """

    def __init__(self, trim_fraction: float = 0.1) -> None:
        if not 0 <= trim_fraction < 0.5:
            bound = ">= 0" if trim_fraction < 0 else "< 0.5"
            raise ConfigError(
                f"federation.aggregator: trim_fraction must be {bound}, got {trim_fraction}; it is "
                "the share that is cut at either end."
            )
        self.trim_fraction = trim_fraction

    def cut(self, clients: int) -> int:
        """Return how many values are cut at either end.

        Example:
            >>> [TrimmedMean(0.1).cut(clients) for clients in (9, 10, 25)]
            [0, 1, 2]
        """
        # the number as it was written: 0.29 of 100 is 29, although 0.29 * 100 < 29 in binary
        return math.floor(Fraction(str(float(self.trim_fraction))) * clients)

    def start(
        self, reference: Mapping[str, Tensor], parameters: Collection[str], sums: Sums = "float64"
    ) -> Gathered:
        """Start the merging of one round."""

        def trimmed_mean(states: Sequence[State], weights: Sequence[float]) -> State:
            cut = self.cut(len(states))
            return _by_coordinate(states, lambda block: _middle(block, cut, sums))

        return Gathered(self, reference, trimmed_mean)


def _middle(block: Tensor, cut: int, sums: Sums) -> Tensor:
    """Return the mean over the rows without the ``cut`` smallest and largest of each column.

    It is taken in order of size, so that not even its last bit depends on the clients' order.
    """
    rows = block.shape[0] - 2 * cut
    kept = _sorted(block)[cut : cut + rows].to(sum_dtype(block.device, sums))
    return kept[0] if rows == 1 else kept.mean(dim=0)


def _by_coordinate(states: Sequence[State], merge: Callable[[Tensor], Tensor]) -> State:
    """Apply a function from (states, coordinates) to (coordinates) to every tensor."""
    return {
        key: torch.cat([value.new_empty(0), *(merge(block) for block in blocks(states, key))])
        .reshape(value.shape)
        for key, value in states[0].items()
    }  # fmt: skip


def _sorted(block: Tensor) -> Tensor:
    """Return the block with each column sorted."""
    if block.device.type != "cpu":
        return block.sort(dim=0).values
    # NumPy sorts columns several times as fast as torch does on a CPU; it has no bfloat16
    return torch.from_numpy(
        np.sort(block.to(torch.promote_types(block.dtype, torch.float32)).numpy(), axis=0)
    )
