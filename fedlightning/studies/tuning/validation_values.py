"""What a trial has measured on validation data, from its folder."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedlightning.core.main_metric import MainMetric
from fedlightning.core.metrics import (
    PERSONAL,
    VAL,
    canonical_name,
    is_test_metric,
    without_view,
)
from fedlightning.storage.run_folders import newest_run
from fedlightning.storage.run_layout import METRICS
from fedlightning.studies.run_reader import read_table

__all__ = ["ValidationValues", "read_values"]


@dataclass(frozen=True)
class ValidationValues:
    """The main metric on validation data, round by round.

    Args:
        metric: The main metric.
        column: Its name in ``metrics.csv``; empty if it is not there.
        by_round: Its value after each round that has one; the first round is 1.
        rounds: Number of rounds in the table.
        measured: What else is measured on validation data, by the same model.
    """

    metric: MainMetric
    column: str = ""
    by_round: tuple[tuple[int, float], ...] = ()
    rounds: int = 0
    measured: tuple[str, ...] = ()

    @property
    def last(self) -> float:
        """The value after the last round that has one; nan without one."""
        return self.by_round[-1][1] if self.by_round else math.nan


def read_values(
    folder: Path, personal: bool, given: str | None = None, mode: str | None = None
) -> ValidationValues:
    """Return what the run in a folder has measured on validation data so far.

    Test data are read for one thing only: the name of the metric that counts, where
    ``federation.main_metric`` does not say it.

    Args:
        folder: The folder that holds ``lightning_logs``.
        personal: Whether clients' personalized models count, instead of the global model.
        given: ``federation.main_metric``.
        mode: ``federation.main_metric_mode``.
    """
    table = (newest_run(folder) or folder) / METRICS
    rounds, values = read_table(table) if table.is_file() else (np.empty(0), {})
    of_test = [
        name
        for name in values
        if without_view(name) == name and is_test_metric(name) and not name.startswith(PERSONAL)
    ]
    metric = MainMetric.chosen([] if given is not None else of_test, given, mode)
    columns = {short: name for name in values if (short := _short(name, personal)) is not None}
    column = columns.get(metric.name, "")
    found = [
        (int(number) + 1, float(value))
        for number, value in zip(rounds, values.get(column, np.empty(0)), strict=False)
        if not math.isnan(value)
    ]
    return ValidationValues(metric, column, tuple(found), len(rounds), tuple(sorted(columns)))


def _short(name: str, personal: bool) -> str | None:
    """Return the short name of a metric of the main view on validation data, else ``None``."""
    if without_view(name) != name:
        return None
    if personal:
        first = PERSONAL[0] + VAL
        return name.removeprefix(first) if name.startswith(first) else None
    return canonical_name(name) if name.startswith(("val/", "val_")) else None
