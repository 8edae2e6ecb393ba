"""Models are selected by validation data, or are those of the last round; never by test data."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Collection, Iterator

import pytorch_lightning as pl
from pytorch_lightning.utilities import rank_zero_warn

from fedlightning.core.metrics import (
    PERSONAL,
    canonical_name,
    is_test_metric,
    on_validation_data,
    without_view,
)
from fedlightning.engine._lightning.trainer_hooks import rounds_between_looks
from fedlightning.engine.evaluation import federated_data
from fedlightning.errors import ConfigError

__all__ = ["check_monitors", "say_whose_model", "warn_of_test_metrics"]

_OF_SPREAD = re.compile("_(weighted|undefined|std|min|p10|p90|worst_decile|jain|nearest_mean)$")

_log = logging.getLogger(f"pytorch_lightning.{__name__}")  # is shown where Lightning's own is


def warn_of_test_metrics(trainer: pl.Trainer) -> None:
    """Say of all that choose a model, or end or steer a run, by test data that they do so.

    What is then reported of the model on the same data is too good.

    Args:
        trainer: The trainer with its callbacks and schedulers.
    """
    for name, metric in dict.fromkeys(_monitors(trainer)):
        if is_test_metric(metric):
            personal = without_view(metric).startswith(PERSONAL)
            better = ("personalized/val_" if personal else "val/") + _measured_by(metric)
            rank_zero_warn(
                f"{name} looks at {metric!r}: that selects by test data, so results on them are "
                f"too good. Hold validation data out (data.val_fraction) and take {better!r}."
            )


def say_whose_model(trainer: pl.Trainer, algorithm: str, kept: Collection[str]) -> None:
    """Say what ``val/...`` and ``global/...`` mean where clients keep parts of the model.

    Args:
        trainer: The trainer with its callbacks and schedulers.
        algorithm: The algorithm's name.
        kept: The keys of the model that each client keeps.
    """
    if not kept:
        return
    some = ", ".join(sorted(kept)[:2]) + (", ..." if len(kept) > 2 else "")
    if trainer.is_global_zero:
        _log.info(
            f"{algorithm}: each client keeps its own {some}. `val/...` and `global/...` are those "
            "of the shared parts with the initial values of what is kept, a model that no client "
            "has; the clients' own models have `initial/...` and `personalized/...` "
            "(PersonalizationCallback)."
        )
    for name, metric in dict.fromkeys(_monitors(trainer)):
        if without_view(metric).startswith(("val", "global")):
            own = f"personalized/val_{_measured_by(metric)}"
            rank_zero_warn(
                f"{name} looks at {metric!r}, which {algorithm} measures of a model that no client "
                f"has; take {own!r}, with PersonalizationCallback(every_n_rounds=1) and "
                "data.val_fraction."
            )


def _measured_by(metric: str) -> str:
    """Return what a metric measures, whatever the data, the model and the summary over clients.

    Example:
        >>> _measured_by("val/f1"), _measured_by("ood/personalized/acc_p10")
        ('f1', 'acc')
    """
    short = canonical_name(without_view(metric).removeprefix("personalized/"))
    return _OF_SPREAD.sub("", short.removeprefix("initial/"))


def _monitors(trainer: pl.Trainer) -> Iterator[tuple[str, str]]:
    """Yield who looks at which metric: callbacks, and schedulers that wait for a plateau."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        metric = getattr(callback, "monitor", None)
        if isinstance(metric, str):
            yield type(callback).__name__, metric
    for config in trainer.lr_scheduler_configs:
        if config.reduce_on_plateau and config.monitor is not None:
            yield type(config.scheduler).__name__, config.monitor


def check_monitors(trainer: pl.Trainer, every_n_rounds: int) -> None:
    """Refuse a callback that looks for what personalization does not measure, or not as often.

    Args:
        trainer: The trainer with its callbacks.
        every_n_rounds: How often clients are personalised.

    Raises:
        ConfigError: There is such a callback.
    """
    validation = trainer.check_val_every_n_epoch or 1
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        metric = getattr(callback, "monitor", None)
        if not isinstance(metric, str) or not without_view(metric).startswith(PERSONAL):
            continue
        if on_validation_data(metric) and not federated_data(trainer).val_fraction:
            raise ConfigError(
                f"{type(callback).__name__} looks at {metric!r}, which is measured on validation "
                "data, and there are none; set data.val_fraction, for instance to 0.2."
            )
        looks = math.lcm(rounds_between_looks(callback), validation)
        if looks % every_n_rounds:
            raise ConfigError(
                f"{type(callback).__name__} looks at {metric!r} every {looks} rounds, but it is "
                f"measured every {every_n_rounds}; set every_n_rounds={looks} of "
                "PersonalizationCallback."
            )
