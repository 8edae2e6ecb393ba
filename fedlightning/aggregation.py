"""The address of :mod:`fedlightning.algorithms.aggregation` in releases before 0.2."""

from fedlightning.algorithms.aggregation import *  # noqa: F403
