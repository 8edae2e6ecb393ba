"""Measuring a client's model, also in the middle of its training, which must not notice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
from torch import nn

from fedlightning.core.metrics import VAL, canonical_name
from fedlightning.datamodules import ClientTask, FederatedDataModule

__all__ = ["measure", "preserve_training_state"]


def measure(
    data: FederatedDataModule,
    client: int,
    evaluate: Callable[[ClientTask], Mapping[str, float]],
) -> dict[str, float]:
    """Return what a model scores on a client's test data and, where it has some, validation data.

    Args:
        data: The clients' data.
        client: Client id.
        evaluate: Returns what the module logs on one of the client's splits.

    Returns:
        Scores by short name, those on validation data with ``val_`` before it.
    """
    test = ClientTask(client, "test", data.num_examples(client, "test"))
    scores = {canonical_name(name): value for name, value in evaluate(test).items()}
    if number := data.num_examples(client, "val"):
        held_out = evaluate(ClientTask(client, "val", number))
        scores |= {VAL + canonical_name(name): value for name, value in held_out.items()}
    return scores


@contextmanager
def preserve_training_state(module: nn.Module) -> Iterator[None]:
    """Put a module that trains into eval mode inside the block; its training goes on as if not.

    What an evaluation draws comes from a forked stream. But that fork drops the normal number that
    NumPy's legacy generator may have kept back for the next call, so this is kept here.
    """
    modes = {child: child.training for child in module.modules()}
    drawn = np.random.get_state(legacy=False)
    module.eval()
    try:
        yield
    finally:
        np.random.set_state(drawn)
        for child, mode in modes.items():
            child.training = mode
