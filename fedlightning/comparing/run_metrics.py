"""The last numbers of a run, for a line about it."""

from __future__ import annotations

import csv
from pathlib import Path

__all__ = ["final_metrics"]

_SHOWN = ("global/acc", "personalized/acc")


def final_metrics(folder: Path) -> list[tuple[str, float]]:
    """Return the last accuracies in a run's ``metrics.csv``, as far as there are any.

    Args:
        folder: The folder that holds ``lightning_logs``.
    """
    tables = sorted(folder.glob("*/*/metrics.csv"))
    if not tables:
        return []
    last: dict[str, float] = {}
    try:
        with tables[-1].open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                last |= {name: float(row[name]) for name in _SHOWN if row.get(name)}
    except (OSError, ValueError):
        return []
    return [(name, last[name]) for name in _SHOWN if name in last]
