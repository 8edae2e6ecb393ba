"""Differential privacy: what is promised, what it costs, and who adds the noise."""

from fedlightning.privacy.accounting import Cohorts, calibrated_multiplier, epsilon_of
from fedlightning.privacy.ledger import Ledger, Release
from fedlightning.privacy.mechanism import ClientMechanism, PrivateRound
from fedlightning.privacy.noise import KeyedNoise, Noise, SystemNoise
from fedlightning.privacy.settings import AdaptiveClipping, ClientDP

__all__ = [
    "AdaptiveClipping",
    "ClientDP",
    "ClientMechanism",
    "Cohorts",
    "KeyedNoise",
    "Ledger",
    "Noise",
    "PrivateRound",
    "Release",
    "SystemNoise",
    "calibrated_multiplier",
    "epsilon_of",
]
