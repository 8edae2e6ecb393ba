"""Differential privacy: what is promised, what it costs, and who adds the noise."""

from typing import TYPE_CHECKING

from fedlightning.core.near_names import suggesting
from fedlightning.privacy.accounting import Cohorts, calibrated_multiplier, epsilon_of
from fedlightning.privacy.banded import BandedNoise
from fedlightning.privacy.example_level import ExampleDP, PrivateHead, PrivateSGD
from fedlightning.privacy.ledger import Ledger, Release
from fedlightning.privacy.mechanism import ClientMechanism, PrivateRound
from fedlightning.privacy.noise import KeyedNoise, Noise, SystemNoise
from fedlightning.privacy.settings import AdaptiveClipping, ClientDP

__all__ = [
    "AdaptiveClipping",
    "BandedNoise",
    "ClientDP",
    "ClientMechanism",
    "Cohorts",
    "ExampleDP",
    "KeyedNoise",
    "Ledger",
    "Noise",
    "PrivateHead",
    "PrivateRound",
    "PrivateSGD",
    "Release",
    "SystemNoise",
    "calibrated_multiplier",
    "epsilon_of",
]

if not TYPE_CHECKING:  # to type checkers a module with __getattr__ has every name
    __getattr__ = suggesting(__name__, __all__)
