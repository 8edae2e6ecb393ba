"""Callbacks: the server's side of a federated run."""

from typing import TYPE_CHECKING

from fedlightning.callbacks.class_accuracy import ClassAccuracy
from fedlightning.callbacks.early_stopping import MainMetricStopping, StopAfterRounds
from fedlightning.callbacks.forgetting import ForgettingCallback
from fedlightning.callbacks.influence.callback import ClientInfluence
from fedlightning.callbacks.last_checkpoint import LastCheckpoint
from fedlightning.callbacks.personalization import PersonalizationCallback
from fedlightning.callbacks.predictions import PredictionWriter
from fedlightning.callbacks.progress_bar import RoundProgressBar
from fedlightning.callbacks.run_config import RunConfig
from fedlightning.callbacks.run_record import RunRecord
from fedlightning.core.near_names import suggesting

__all__ = [
    "ClassAccuracy",
    "ClientInfluence",
    "ForgettingCallback",
    "LastCheckpoint",
    "MainMetricStopping",
    "PersonalizationCallback",
    "PredictionWriter",
    "RoundProgressBar",
    "RunConfig",
    "RunRecord",
    "StopAfterRounds",
]

if not TYPE_CHECKING:  # to type checkers a module with __getattr__ has every name
    __getattr__ = suggesting(__name__, __all__)
