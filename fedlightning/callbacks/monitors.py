"""Whether a metric is there when a callback wants to look at it."""

from __future__ import annotations

import math

import pytorch_lightning as pl

from fedlightning._lightning import rounds_between_looks
from fedlightning.errors import ConfigError

__all__ = ["check_monitors"]


def check_monitors(trainer: pl.Trainer, prefixes: tuple[str, ...], every_n_rounds: int) -> None:
    """Refuse a callback that looks at a metric in rounds in which it is not measured.

    Args:
        trainer: The trainer with its callbacks.
        prefixes: How the names of the metrics begin.
        every_n_rounds: How often they are measured.

    Raises:
        ConfigError: There is such a callback.
    """
    validation = trainer.check_val_every_n_epoch or 1
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        metric = getattr(callback, "monitor", None)
        if not isinstance(metric, str) or not metric.startswith(prefixes):
            continue
        looks = math.lcm(rounds_between_looks(callback), validation)
        if looks % every_n_rounds:
            raise ConfigError(
                f"{type(callback).__name__} looks at {metric!r} every {looks} rounds, but it is "
                f"measured every {every_n_rounds}; set every_n_rounds={looks} of "
                "PersonalizationCallback."
            )
