"""Merging what clients send: the mean, and rules that a few hostile clients cannot bend."""

from typing import TYPE_CHECKING

from fedlightning.algorithms.aggregation.base import Accumulator, Aggregator
from fedlightning.algorithms.aggregation.coordinatewise import CoordinateMedian, TrimmedMean
from fedlightning.algorithms.aggregation.krum import Krum, MultiKrum
from fedlightning.algorithms.aggregation.mean import Mean, WeightedMean
from fedlightning.algorithms.aggregation.norm_clipping import NormClipping
from fedlightning.algorithms.aggregation.secure_sum import SecureSum
from fedlightning.core.near_names import suggesting
from fedlightning.core.state import Sums, widest_float

Merge = Accumulator
"""The name of :class:`Accumulator` in releases before 0.2."""

__all__ = [
    "Accumulator",
    "Aggregator",
    "CoordinateMedian",
    "Krum",
    "Mean",
    "Merge",
    "MultiKrum",
    "NormClipping",
    "SecureSum",
    "Sums",
    "TrimmedMean",
    "WeightedMean",
    "widest_float",
]

if not TYPE_CHECKING:  # to type checkers a module with __getattr__ has every name
    __getattr__ = suggesting(__name__, __all__)
