"""Names of metrics: what they begin with, and on which data they are measured."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from fedlightning.core.views import HELD_OUT, RESERVED

__all__ = [
    "CLASS",
    "PERSONAL",
    "VAL",
    "LogFlags",
    "Metrics",
    "canonical_name",
    "is_test_metric",
    "on_validation_data",
    "without_view",
]


@dataclass(frozen=True)
class LogFlags:
    """Where a logged value appears at the end of the round."""

    prog_bar: bool = False
    logger: bool | None = None


Metrics = Mapping[str, tuple[float, LogFlags]]
"""What is logged once per round: value and flags, by name."""


CLASS = "acc_class_"
"""Prefix of the short names of accuracies of one class, which follows it."""

VAL = "val_"
"""Prefix of the short names of metrics on validation data."""


def canonical_name(name: str) -> str:
    """Return ``acc`` for ``global/acc``, ``test_acc`` or ``test/accuracy``, and so on.

    Example:
        >>> canonical_name("global/acc"), canonical_name("val/accuracy"), canonical_name("test_f1")
        ('acc', 'acc', 'f1')
    """
    short = re.sub(r"^(global|test|val)[/_]", "", name)
    return "acc" if short.lower() in ("acc", "accuracy") else short


PERSONAL = ("personalized/", "initial/")
"""Prefixes of the metrics of personalization."""


_ON_TEST_DATA = ("global/", "test/", "test_", *PERSONAL)
_IN_A_VIEW = (*_ON_TEST_DATA, "val/", "val_")


def without_view(metric: str) -> str:
    """Return a metric's name without that of its evaluation view, which the main view lacks.

    Example:
        >>> without_view("ood/personalized/val_acc"), without_view("personalized/val_acc")
        ('personalized/val_acc', 'personalized/val_acc')
    """
    view, _, rest = metric.partition("/")
    return rest if rest.startswith(_IN_A_VIEW) and view not in RESERVED else metric


def is_test_metric(metric: str) -> bool:
    """Whether a metric is known, by its name, to be measured on test data or on held-out clients.

    Example:
        >>> is_test_metric("global/acc"), is_test_metric("ood/personalized/acc_p10")
        (True, True)
        >>> is_test_metric("val/acc"), is_test_metric("personalized/val_acc")
        (False, False)
    """
    if metric.startswith(f"{HELD_OUT}/"):
        return True
    return without_view(metric).startswith(_ON_TEST_DATA) and not on_validation_data(metric)


def on_validation_data(metric: str) -> bool:
    """Whether a metric is one that personalization measures on validation data."""
    return without_view(metric).startswith(tuple(moment + VAL for moment in PERSONAL))
