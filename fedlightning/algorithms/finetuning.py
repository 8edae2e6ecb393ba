"""`FineTuning`: one client's personalization, as the hooks of an algorithm see it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import pytorch_lightning as pl
from torch import Tensor

from fedlightning.core.batches import Batch, Split
from fedlightning.core.state import State

__all__ = ["FineTuning"]


@dataclass(frozen=True)
class FineTuning:
    """What a personalization offers to the hooks of an algorithm.

    Args:
        client: Client id.
        module: The module: at the start the global model with what the client has kept, at the end
            the fine-tuned one, in eval mode.
        received: The global model; not to be changed.
        keys: The keys that are fine-tuned.
        class_counts: Returns how many of the client's training examples are of each of so many
            classes, as float64.
        num_examples: Returns the size of one of the client's splits.
        batches: Returns a split in evaluation batches.
        gradient: Returns the gradient of the mean of the module's training loss over all of the
            client's training examples, in eval mode, at some values of trained parameters; those
            that are left out have the module's. It has the keys of all trained parameters.
    """

    client: int
    module: pl.LightningModule
    received: Mapping[str, Tensor]
    keys: tuple[str, ...]
    class_counts: Callable[[int], Tensor]
    num_examples: Callable[[Split], int]
    batches: Callable[[Split], Iterator[Batch]]
    gradient: Callable[[Mapping[str, Tensor]], State] = dict
