"""What a trial has measured on validation data, from its folder."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from fedlightning.core.main_metric import MainMetric
from fedlightning.core.metrics import (
    PERSONAL,
    VAL,
    canonical_name,
    is_test_metric,
    without_view,
)
from fedlightning.storage.csv_files import read_csv
from fedlightning.storage.run_folders import newest_run
from fedlightning.storage.run_layout import METRICS

__all__ = ["ValidationValues", "read_values"]


@dataclass(frozen=True)
class ValidationValues:
    """The main metric on validation data, round by round.

    Args:
        metric: The main metric.
        column: Its name in ``metrics.csv``; empty if it is not there.
        by_round: Its value after each round that has measured it, nan where it is undefined; the
            first round is 1.
        rounds: Number of rounds in the table.
        measured: What else is measured on validation data, by the same model.
        undefined: Number of clients that the last value leaves out, because theirs is undefined.
    """

    metric: MainMetric
    column: str = ""
    by_round: tuple[tuple[int, float], ...] = ()
    rounds: int = 0
    measured: tuple[str, ...] = ()
    undefined: int = 0

    @property
    def last(self) -> float:
        """The value after the last round that has measured it; nan if it is undefined, or none."""
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
    header, rows = read_csv(table) if table.is_file() else ([], [])
    of_test = [
        name
        for name in header
        if without_view(name) == name and is_test_metric(name) and not name.startswith(PERSONAL)
    ]
    metric = MainMetric.chosen([] if given is not None else of_test, given, mode)
    columns = {short: name for name in header if (short := _short(name, personal)) is not None}
    column = columns.get(metric.name, "")
    cells = [dict(zip(header, row, strict=True)) for row in rows]
    measured = [row for row in cells if row.get(column)]  # an undefined value is not empty but nan
    found = [(int(row["round"]) + 1, float(row[column])) for row in measured]
    missing = measured[-1].get(f"{column}_undefined") if measured else ""
    return ValidationValues(
        metric, column, tuple(found), len(rows), tuple(sorted(columns)), int(float(missing or 0))
    )


def _short(name: str, personal: bool) -> str | None:
    """Return the short name of a metric of the main view on validation data, else ``None``."""
    if without_view(name) != name:
        return None
    if personal:
        first = PERSONAL[0] + VAL
        return name.removeprefix(first) if name.startswith(first) else None
    return canonical_name(name) if name.startswith(("val/", "val_")) else None
