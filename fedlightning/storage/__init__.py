"""Checkpoint files that cannot be torn, and runs that go on from them."""

from fedlightning.storage.checkpoint_io import LAST, PREVIOUS, AtomicCheckpointIO
from fedlightning.storage.checkpoint_reader import read_checkpoint, rounds_in
from fedlightning.storage.search import good_checkpoint, latest_checkpoint

__all__ = [
    "LAST",
    "PREVIOUS",
    "AtomicCheckpointIO",
    "good_checkpoint",
    "latest_checkpoint",
    "read_checkpoint",
    "rounds_in",
]
