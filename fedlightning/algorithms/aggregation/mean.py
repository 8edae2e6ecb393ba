"""The weighted mean: float64 sums in cohort order, rounded once."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fedlightning.algorithms.aggregation.base import (
    Aggregator,
    check_weight,
    floats_of,
    require_finite,
)
from fedlightning.core.exact_sum import ExactSums
from fedlightning.core.state import State, Sums, sum_dtype

__all__ = ["Mean", "WeightedMean"]


class Mean(Aggregator):
    r"""The weighted mean of the clients' states, :math:`\sum_i w_i \theta_i / \sum_i w_i`.

    It keeps one sum, however large the cohort. One client can move it as far as it likes.

    Example:
        >>> Mean().start({"w": torch.zeros(2)}, parameters=["w"])
        <fedlightning.algorithms.aggregation.mean.WeightedMean object at ...>
    """

    robust = False

    def start(
        self, reference: Mapping[str, Tensor], parameters: Collection[str], sums: Sums = "float64"
    ) -> WeightedMean:
        """Start the merging of one round."""
        return WeightedMean(sums)


class WeightedMean:
    """The weighted mean of states, taken in one at a time.

    Floating-point tensors are summed in float64 and rounded once to their own dtype, so the mean
    of equal tensors of float32 or less is that tensor, bit for bit. Integer tensors (BatchNorm's
    ``num_batches_tracked``) have no mean: they are left out of the result, and the server keeps its
    own.

    Args:
        sums: ``float32`` adds in single precision, as most published code does: needed to replay
            a published run to the last bit, because training amplifies the difference. ``exact``
            adds without rounding (see :class:`~fedlightning.core.exact_sum.ExactSums`), so that
            several processes can each add their own clients' states and then :meth:`combine` the
            sums, to the bits of one process.

    Example:
        >>> mean = WeightedMean()
        >>> mean.push({"w": torch.tensor([0.0, 4.0])}, weight=1)
        >>> mean.push({"w": torch.tensor([3.0, 1.0])}, weight=2)
        >>> mean.result()
        {'w': tensor([2., 2.])}
    """

    def __init__(self, sums: Sums = "float64") -> None:
        self._sums_in: Sums = sums
        self._sums: State | None = None
        self._exact = ExactSums() if sums == "exact" else None
        self._dtypes: dict[str, torch.dtype] = {}
        self._weight = 0.0

    @torch.no_grad()
    def push(self, state: Mapping[str, Tensor], weight: float) -> None:
        """Add one state; it may be overwritten afterwards.

        Args:
            state: Tensors by key; the same keys and shapes at every call.
            weight: Its weight, > 0.

        Raises:
            ValueError: If the weight is not a finite number > 0, or keys or shapes differ from
                the first's.
        """
        check_weight(weight)
        values = floats_of(state, self._sums)
        if self._sums is None:
            self._dtypes = {key: value.dtype for key, value in values.items()}
            self._sums = {
                key: torch.empty_like(value, device="meta")
                if self._exact is not None
                else torch.zeros_like(value, dtype=self._dtype(value))
                for key, value in values.items()
            }
        self._weight += weight
        if self._exact is not None:
            self._exact.add(values, weight)
        elif values:
            torch._foreach_add_(
                [self._sums[key] for key in values],
                [value.to(self._dtype(value)) for value in values.values()],
                alpha=weight,
            )

    def note(self, weight: float) -> None:
        """Hear of a state that another process adds; in the order in which all are pushed."""
        check_weight(weight)
        self._weight += weight

    def combine(
        self,
        gather: Callable[[Any], Sequence[Any]],
        add_up: Callable[[Tensor], None],
        device: torch.device | None = None,
    ) -> None:
        """Add the sums of other processes; all of them must call it, with ``sums="exact"``.

        Args:
            gather: Returns every process's value of something small.
            add_up: Replaces a tensor by its sum over all processes.
            device: Where the sums are.
        """
        assert self._exact is not None, 'only sums="exact" can be combined'
        for theirs in gather(self._dtypes):
            self._dtypes |= theirs
        self._exact.combine(gather, add_up, device)
        self._sums = self._sums if self._sums is not None else {}

    def result(self) -> State:
        """Return the mean, each tensor in its own dtype.

        Raises:
            ValueError: If nothing was pushed, or the mean is not finite: a NaN or an infinity in
                any of the states is still there in the sum.
        """
        if self._sums is None:
            raise ValueError("the mean of no states")
        sums = self._sums if self._exact is None else self._exact.result()
        mean = {key: (total / self._weight).to(self._dtypes[key]) for key, total in sums.items()}
        require_finite(mean)
        return mean

    def _dtype(self, value: Tensor) -> torch.dtype:
        return sum_dtype(value.device, self._sums_in)
