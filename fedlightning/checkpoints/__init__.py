"""Checkpoint files that cannot be torn, and runs that go on from them."""

from fedlightning.checkpoints.io import LAST, PREVIOUS, AtomicCheckpointIO
from fedlightning.checkpoints.reading import read_checkpoint, rounds_in
from fedlightning.checkpoints.search import good_checkpoint, latest_checkpoint

__all__ = [
    "LAST",
    "PREVIOUS",
    "AtomicCheckpointIO",
    "good_checkpoint",
    "latest_checkpoint",
    "read_checkpoint",
    "rounds_in",
]
