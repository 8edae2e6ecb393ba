"""Checkpoint files that cannot be torn, and runs that go on from them."""

from fedlightning.storage.checkpoint_io import (
    AtomicCheckpointIO,
    good_checkpoint,
    latest_checkpoint,
)
from fedlightning.storage.checkpoint_reader import read_checkpoint, rounds_in
from fedlightning.storage.run_layout import LAST, PREVIOUS

__all__ = [
    "LAST",
    "PREVIOUS",
    "AtomicCheckpointIO",
    "good_checkpoint",
    "latest_checkpoint",
    "read_checkpoint",
    "rounds_in",
]
