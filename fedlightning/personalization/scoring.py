"""Scores of a client's model, also in the middle of its training, which they leave as it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
from torch import nn

from fedlightning.core.metrics import canonical_name
from fedlightning.core.module_snapshot import eval_mode
from fedlightning.datamodules import ClientTask, Split

__all__ = ["Scores", "measure", "preserve_training_state"]


Scores = Mapping[Split, Mapping[str, float]]
"""What a model scores on each split of a client, by the metric's short name."""


def measure(
    tasks: Iterable[ClientTask], evaluate: Callable[[ClientTask], Mapping[str, float]]
) -> Scores:
    """Return what a model scores on a client's splits.

    Args:
        tasks: The client's splits.
        evaluate: Returns what the module logs on one of them.
    """
    return {
        task.split: {canonical_name(name): value for name, value in evaluate(task).items()}
        for task in tasks
    }


@contextmanager
def preserve_training_state(module: nn.Module) -> Iterator[None]:
    """Put a module into eval mode inside the ``with`` block, without a trace in its training.

    What an evaluation draws comes from a forked stream. That fork drops the normal number that
    NumPy's legacy generator may hold for its next call, so the generator's state is restored here.
    """
    drawn = np.random.get_state(legacy=False)
    try:
        with eval_mode(module):
            yield
    finally:
        np.random.set_state(drawn)
