"""Merging what clients send: float64 sums in cohort order, rounded once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Protocol

import torch
from torch import Tensor

from fedlightning.parts import State

__all__ = ["Merge", "Sums", "WeightedMean", "widest_float"]

Sums = Literal["float64", "float32"]


class Merge(Protocol):
    """Takes in states one at a time and returns what they are together."""

    def push(self, state: Mapping[str, Tensor], weight: float) -> None:
        """Take in one state."""

    def result(self) -> State:
        """Return the merged state."""


class WeightedMean:
    """The weighted mean of states, taken in one at a time.

    Floating-point tensors are summed in float64 and rounded once to their own dtype, so the mean
    of equal tensors of float32 or less is that tensor, bit for bit. Integer tensors (BatchNorm's
    ``num_batches_tracked``) have no mean: they are left out of the result, and the server keeps its
    own.

    Args:
        sums: ``float32`` adds in single precision, as most published code does: needed to replay
            somebody else's run to the last bit, because training amplifies the difference.

    Example:
        >>> mean = WeightedMean()
        >>> mean.push({"w": torch.tensor([0.0, 4.0])}, weight=1)
        >>> mean.push({"w": torch.tensor([3.0, 1.0])}, weight=2)
        >>> mean.result()
        {'w': tensor([2., 2.])}
    """

    def __init__(self, sums: Sums = "float64") -> None:
        self._sums_in: Sums = sums
        self._sums: dict[str, Tensor] = {}
        self._dtypes: dict[str, torch.dtype] = {}
        self._weight = 0.0

    @torch.no_grad()
    def push(self, state: Mapping[str, Tensor], weight: float) -> None:
        """Add one state; it may be overwritten afterwards.

        Args:
            state: Tensors by key; the same keys and shapes at every call.
            weight: Its weight, > 0.

        Raises:
            ValueError: If the weight is not a finite number > 0, or the keys differ from the
                first's.
        """
        if not 0 < weight < float("inf"):
            raise ValueError(f"weight must be a finite number > 0, got {weight}")
        values = {key: value for key, value in state.items() if value.is_floating_point()}
        if not self._dtypes:
            self._dtypes = {key: value.dtype for key, value in values.items()}
            self._sums = {
                key: torch.zeros_like(value, dtype=self._dtype(value))
                for key, value in values.items()
            }
        if values.keys() != self._sums.keys():
            raise ValueError(f"keys differ: {sorted(values.keys() ^ self._sums.keys())}")
        self._weight += weight
        if values:
            torch._foreach_add_(
                [self._sums[key] for key in values],
                [value.to(self._dtype(value)) for value in values.values()],
                alpha=weight,
            )

    def result(self) -> State:
        """Return the mean, each tensor in its own dtype.

        Raises:
            ValueError: If nothing was pushed.
        """
        if not self._weight:
            raise ValueError("the mean of no states")
        return {
            key: (total / self._weight).to(self._dtypes[key]) for key, total in self._sums.items()
        }

    def _dtype(self, value: Tensor) -> torch.dtype:
        return torch.float32 if self._sums_in == "float32" else widest_float(value.device)


def widest_float(device: torch.device) -> torch.dtype:
    """Return float64, or float32 on Apple's GPUs, which have no other."""
    return torch.float32 if device.type == "mps" else torch.float64
