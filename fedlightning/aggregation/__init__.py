"""Merging what clients send: the mean, and rules that a few hostile clients cannot bend."""

from fedlightning.aggregation.base import Aggregator, Merge, Sums, widest_float
from fedlightning.aggregation.clipping import NormClipping
from fedlightning.aggregation.coordinates import CoordinateMedian, TrimmedMean
from fedlightning.aggregation.krum import Krum, MultiKrum
from fedlightning.aggregation.mean import Mean, WeightedMean

__all__ = [
    "Aggregator",
    "CoordinateMedian",
    "Krum",
    "Mean",
    "Merge",
    "MultiKrum",
    "NormClipping",
    "Sums",
    "TrimmedMean",
    "WeightedMean",
    "widest_float",
]
