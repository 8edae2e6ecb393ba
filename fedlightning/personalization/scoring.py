"""Measuring a client's model, also in the middle of its training, which must not notice."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
from torch import nn

from fedlightning.datamodules import ClientTask, FederatedDataModule

__all__ = ["VAL", "measure", "short_name", "undisturbed"]

VAL = "val_"
"""What stands before the short names of what is measured on validation data."""


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
    scores = {short_name(name): value for name, value in evaluate(test).items()}
    if number := data.num_examples(client, "val"):
        held_out = evaluate(ClientTask(client, "val", number))
        scores |= {VAL + short_name(name): value for name, value in held_out.items()}
    return scores


def short_name(name: str) -> str:
    """Return ``acc`` for ``global/acc``, ``test_acc`` or ``test/accuracy``; other names alike.

    Example:
        >>> short_name("global/acc"), short_name("val/accuracy"), short_name("test_f1")
        ('acc', 'acc', 'f1')
    """
    short = re.sub(r"^(global|test|val)[/_]", "", name)
    return "acc" if short.lower() in ("acc", "accuracy") else short


@contextmanager
def undisturbed(module: nn.Module) -> Iterator[None]:
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
