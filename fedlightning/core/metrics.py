"""Names of metrics: what they begin with, and on which data they are measured."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = [
    "HELD_OUT",
    "PERSONAL",
    "VAL",
    "LogFlags",
    "Metrics",
    "canonical_name",
    "is_test_metric",
    "on_validation_data",
]


HELD_OUT = "held_out/"
"""What stands before the names of metrics of clients that never train."""


@dataclass(frozen=True)
class LogFlags:
    """Where a logged value shall appear once the round is over."""

    prog_bar: bool = False
    logger: bool | None = None


Metrics = Mapping[str, tuple[float, LogFlags]]
"""What is logged once a round: value and flags, by name."""


VAL = "val_"
"""What stands before the short names of what is measured on validation data."""


def canonical_name(name: str) -> str:
    """Return ``acc`` for ``global/acc``, ``test_acc`` or ``test/accuracy``; other names alike.

    Example:
        >>> canonical_name("global/acc"), canonical_name("val/accuracy"), canonical_name("test_f1")
        ('acc', 'acc', 'f1')
    """
    short = re.sub(r"^(global|test|val)[/_]", "", name)
    return "acc" if short.lower() in ("acc", "accuracy") else short


PERSONAL = ("personalized/", "initial/")
"""How names of what personalization measures begin."""


_ON_TEST_DATA = ("global/", "test/", "test_", *PERSONAL)


def is_test_metric(metric: str) -> bool:
    """Whether a metric is known, by its name, to be measured on test data or on held-out clients.

    Example:
        >>> is_test_metric("global/acc"), is_test_metric("personalized/acc_p10")
        (True, True)
        >>> is_test_metric("val/acc"), is_test_metric("personalized/val_acc")
        (False, False)
    """
    if metric.startswith(HELD_OUT):
        return True
    return metric.startswith(_ON_TEST_DATA) and not on_validation_data(metric)


def on_validation_data(metric: str) -> bool:
    """Whether a metric is one that personalization measures on validation data."""
    return any(metric.removeprefix(HELD_OUT).startswith(moment + VAL) for moment in PERSONAL)
