"""The points of a learning curve over seeds."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fedlightning.studies.results import Group
from fedlightning.studies.run_reader import Numbers

__all__ = ["Curve", "curve_of"]


@dataclass(frozen=True)
class Curve:
    """A metric over rounds.

    Args:
        rounds: The rounds that all seeds came to; the first one is 1.
        means: Means over seeds.
        deviations: Standard deviations over seeds (``ddof=1``); nan for one seed.
    """

    rounds: Numbers
    means: Numbers
    deviations: Numbers


def curve_of(group: Group, column: str) -> Curve:
    """Return the curve of a metric; a round that only some seeds came to is left out."""
    by_round: dict[int, list[float]] = {}
    for run in group.runs.values():
        for number, value in zip(run.rounds, run.metrics.get(column, ()), strict=False):
            if not math.isnan(value):
                by_round.setdefault(int(number) + 1, []).append(float(value))
    full = max(map(len, by_round.values()), default=0)
    rounds = [number for number in sorted(by_round) if len(by_round[number]) == full]
    values = np.array([by_round[number] for number in rounds], float).reshape(len(rounds), full)
    deviations = values.std(axis=1, ddof=1) if full > 1 else np.full(len(rounds), math.nan)
    return Curve(np.array(rounds, float), values.mean(axis=1) if full else np.empty(0), deviations)
