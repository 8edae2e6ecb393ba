"""Trainer flags that mean nothing to a federation, and the reasons."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedlightning.errors import ConfigError

__all__ = ["MEANINGLESS", "refuse_meaningless"]

MEANINGLESS: Mapping[str, tuple[Any, str]] = {
    "overfit_batches": (
        0.0,
        "clients differ, so there is no batch to overfit; set federation.cohort_size",
    ),
    "val_check_interval": (
        None,
        "validation belongs to a round's end; set trainer.check_val_every_n_epoch",
    ),
    "reload_dataloaders_every_n_epochs": (
        0,
        "clients' data is indexed afresh every round anyway",
    ),
    "sync_batchnorm": (
        False,
        "clients do not share batches; choose a norm layer without statistics",
    ),
    "barebones": (
        False,
        "a federated run is nothing without logging; switch off single features",
    ),
}
"""Name, the value that changes nothing, and why another value is refused."""


def refuse_meaningless(flags: Mapping[str, Any]) -> None:
    """Refuse trainer arguments that have no federated meaning.

    Raises:
        ConfigError: If there is one; the message says why.

    Example:
        >>> refuse_meaningless({"max_epochs": 3, "overfit_batches": 0})
        >>> refuse_meaningless({"max_epochs": 0})
        Traceback (most recent call last):
        fedlightning.errors.ConfigError: trainer.max_epochs counts rounds and must be ... got 0.
    """
    for name, (neutral, reason) in MEANINGLESS.items():
        value = flags.get(name)
        if value not in (None, neutral) and not (name == "val_check_interval" and value == 1.0):
            raise ConfigError(f"trainer.{name}={value!r} has no federated meaning: {reason}.")
    if flags.get("check_val_every_n_epoch") == 0:
        raise ConfigError("trainer.check_val_every_n_epoch must be >= 1, got 0.")
    rounds = flags.get("max_epochs")
    counts = isinstance(rounds, int) and not isinstance(rounds, bool)
    if rounds is not None and not (counts and (rounds >= 1 or rounds == -1)):
        raise ConfigError(
            "trainer.max_epochs counts rounds and must be an integer >= 1 (or -1 for no end), "
            f"got {rounds!r}."
        )
