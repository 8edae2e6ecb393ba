"""A round: whose turn it is, what a client does, what the server merges; and the settings."""

from typing import TYPE_CHECKING

from fedlightning.core.near_names import suggesting
from fedlightning.federation.buffered import Buffered
from fedlightning.federation.cyclic import Cyclic
from fedlightning.federation.delays import (
    ByClient,
    ByExamples,
    ConstantDelay,
    Delays,
    Exponential,
    LogNormal,
    Trace,
    Windows,
)
from fedlightning.federation.schedule import Schedule, Synchronous
from fedlightning.federation.settings import Federation
from fedlightning.federation.staleness import (
    ConstantWeight,
    Hinge,
    Polynomial,
    StalenessWeight,
)

__all__ = [
    "Buffered",
    "ByClient",
    "ByExamples",
    "ConstantDelay",
    "ConstantWeight",
    "Cyclic",
    "Delays",
    "Exponential",
    "Federation",
    "Hinge",
    "LogNormal",
    "Polynomial",
    "Schedule",
    "StalenessWeight",
    "Synchronous",
    "Trace",
    "Windows",
]

if not TYPE_CHECKING:  # to type checkers a module with __getattr__ has every name
    __getattr__ = suggesting(__name__, __all__)
