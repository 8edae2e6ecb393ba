"""Models are selected by validation data, or are those of the last round; never by test data."""

from __future__ import annotations

from collections.abc import Iterator

import pytorch_lightning as pl
from pytorch_lightning.utilities import rank_zero_warn

from fedlightning.engine.evaluation import HELD_OUT
from fedlightning.personalization.scoring import VAL

__all__ = ["PERSONAL", "is_test_metric", "on_validation_data", "warn_of_test_metrics"]

PERSONAL = ("personalized/", "initial/")
"""How names of what personalization measures begin."""

_ON_TEST_DATA = ("global/", "test/", "test_", *PERSONAL)


def warn_of_test_metrics(trainer: pl.Trainer) -> None:
    """Say of all that choose a model, or end or steer a run, by test data that they do so.

    What is then reported of the model on the same data is too good.

    Args:
        trainer: The trainer with its callbacks and schedulers.
    """
    for name, metric in dict.fromkeys(_monitors(trainer)):
        if is_test_metric(metric):
            personal = metric.removeprefix(HELD_OUT).startswith(PERSONAL)
            better = "personalized/val_" if personal else "val/"
            better += "loss" if "loss" in metric else "acc"
            rank_zero_warn(
                f"{name} looks at {metric!r}: that selects by test data, so results on them are "
                f"too good. Hold validation data out (data.val_fraction) and take {better!r}."
            )


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


def _monitors(trainer: pl.Trainer) -> Iterator[tuple[str, str]]:
    """Yield who looks at which metric: callbacks, and schedulers that wait for a plateau."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        metric = getattr(callback, "monitor", None)
        if isinstance(metric, str):
            yield type(callback).__name__, metric
    for config in trainer.lr_scheduler_configs:
        if config.reduce_on_plateau and config.monitor is not None:
            yield type(config.scheduler).__name__, config.monitor
