"""Whether a metric is there when a callback wants to look at it."""

from __future__ import annotations

import math

import pytorch_lightning as pl

from fedlightning.engine._lightning.round_loop import rounds_between_looks
from fedlightning.errors import ConfigError
from fedlightning.engine.evaluation import HELD_OUT, federated_data
from fedlightning.engine.checks.monitors import PERSONAL, on_validation_data

__all__ = ["check_monitors"]


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
        if not isinstance(metric, str) or not metric.removeprefix(HELD_OUT).startswith(PERSONAL):
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
