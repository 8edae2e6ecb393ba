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
    """Where a logged value shall appear once the round is over."""

    prog_bar: bool = False
    logger: bool | None = None


Metrics = Mapping[str, tuple[float, LogFlags]]
"""What is logged once a round: value and flags, by name."""


CLASS = "acc_class_"
"""What the short names of accuracies of one class begin with; the class follows."""

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
_IN_A_VIEW = (*_ON_TEST_DATA, "val/", "val_")


def without_view(metric: str) -> str:
    """Return a metric's name without the view's, which stands before it in all but the main view.

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
