"""The distribution of a score over clients: mean, spread, worst decile, fairness."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

__all__ = ["Spread"]


@dataclass(frozen=True)
class Spread:
    """How a number is spread over clients; a mean alone hides who is served badly.

    Args:
        mean: Mean over the counted clients; nan when there are none, like all others.
        std: Population standard deviation (``ddof=0``), as federated papers report it.
        min: The worst client.
        p10: The tenth percentile, linearly interpolated.
        max: The best client.
        count: Clients counted.
        missing: Clients left out because their value is nan.
        p90: The ninetieth percentile, linearly interpolated.
        worst_decile: Mean of the worst tenth of the clients, rounded down, at least one.
        jain: Jain's index of fairness, ``(sum x)^2 / (n sum x^2)``: 1 if all are served equally
            (with nothing, too), 1/n if one client has it all.

    Source:
        Jain, Chiu, Hawe. A Quantitative Measure of Fairness and Discrimination for Resource
        Allocation in Shared Computer Systems. DEC Research Report TR-301, 1984.
        https://arxiv.org/abs/cs/9809099
    """

    mean: float
    std: float
    min: float
    p10: float
    max: float
    count: int
    missing: int = 0
    p90: float = math.nan
    worst_decile: float = math.nan
    jain: float = math.nan

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Return the spread of ``values``, with nan left out and counted as missing.

        Example:
            >>> spread = Spread.of([0.2, 0.4, 0.6, float("nan")])
            >>> round(spread.mean, 6), round(spread.p10, 6), spread.count, spread.missing
            (0.4, 0.24, 3, 1)
            >>> Spread.of([]).count
            0
        """
        given = np.fromiter((float(value) for value in values), dtype=np.float64)
        known = given[~np.isnan(given)]
        missing = given.size - known.size
        if known.size == 0:
            return cls(math.nan, math.nan, math.nan, math.nan, math.nan, 0, missing)
        ordered = np.sort(known)
        # A diverged client has an infinite loss; the standard deviation is then nan, silently.
        with np.errstate(invalid="ignore"):
            return cls(
                mean=float(known.mean()),
                std=float(known.std()),
                min=float(ordered[0]),
                p10=float(np.percentile(known, 10)),
                max=float(ordered[-1]),
                count=known.size,
                missing=missing,
                p90=float(np.percentile(known, 90)),
                worst_decile=float(ordered[: max(known.size // 10, 1)].mean()),
                jain=_jain(known),
            )


def _jain(values: np.ndarray) -> float:
    """Return Jain's index of fairness of at least one number."""
    squares = float((values**2).sum())
    return float(values.sum()) ** 2 / (values.size * squares) if squares else 1.0
