"""The distribution of a score over clients: mean, spread, worst decile, fairness."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from fedlightning.core.metrics import CLASS

__all__ = ["Spread", "over_clients", "rank_correlation"]


@dataclass(frozen=True)
class Spread:
    """How a number is spread over clients; a mean alone hides those that are served badly.

    Args:
        mean: Mean over the counted clients; nan when there are none, like all others.
        std: Population standard deviation (``ddof=0``), as federated papers report it.
        min: The worst client.
        p10: The tenth percentile, linearly interpolated.
        max: The best client.
        count: Clients counted.
        missing: Clients left out because their value is nan.
        p90: The ninetieth percentile, linearly interpolated.
        worst_decile: Mean over the worst tenth of the clients: ``max(1, floor(n / 10))`` of them.
        jain: Jain's index of fairness, ``(sum x)^2 / (n sum x^2)``: 1 if all are served equally,
            1/n if one client has it all, nan if none has anything.

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
    """Return Jain's index of fairness of at least one number; nan if all are zero."""
    squares = float((values**2).sum())
    return float(values.sum()) ** 2 / (values.size * squares) if squares else math.nan


def rank_correlation(one: Sequence[float], other: Sequence[float]) -> float:
    """Return Spearman's rank correlation; equal numbers share the mean of their ranks.

    Args:
        one: Numbers.
        other: As many; pairs of which one is nan are left out.

    Returns:
        A number in -1..1; nan for fewer than two pairs, or where all numbers are equal.

    Example:
        >>> rank_correlation([1.0, 2.0, 3.0], [10.0, 20.0, 900.0])
        1.0
        >>> rank_correlation([1.0, 2.0, 2.0, 3.0], [4.0, 3.0, 2.0, 1.0])
        -0.9486832980505138
    """
    pairs = [(a, b) for a, b in zip(one, other, strict=True) if not (a != a or b != b)]
    if len(pairs) < 2:
        return math.nan
    ranks = np.array([_mean_ranks(column) for column in zip(*pairs, strict=True)])
    centred = ranks - ranks.mean(axis=1, keepdims=True)
    squares = float((centred[0] ** 2).sum() * (centred[1] ** 2).sum())
    return float((centred[0] * centred[1]).sum()) / math.sqrt(squares) if squares else math.nan


def _mean_ranks(values: Sequence[float]) -> np.ndarray:
    _, place, counts = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    means: np.ndarray = (last - (counts - 1) / 2)[place]
    return means


def over_clients(
    name: str, values: Sequence[float], num_examples: Sequence[int]
) -> dict[str, float]:
    """Return a metric's mean over clients, its mean over examples, and how many have none.

    A client whose value is nan is left out of both means, and counted. The accuracy of one class is
    a mean over the clients that have the class, without a mean over examples.

    Args:
        name: The metric.
        values: Each client's value.
        num_examples: How many examples each of them is a mean over.

    Returns:
        ``name``, each client counting once; ``name_weighted``, each example counting once; and,
        where a client's value is undefined, ``name_undefined``, the number of such clients.

    Example:
        >>> over_clients("acc", [1.0, 0.5, math.nan], [1, 3, 2])
        {'acc': 0.75, 'acc_weighted': 0.625, 'acc_undefined': 1.0}
    """
    known = [
        (value, size)
        for value, size in zip(values, num_examples, strict=True)
        if not math.isnan(value)
    ]
    if not known:
        return {name: math.nan, f"{name}_undefined": float(len(values))}
    means = {name: sum(value for value, _ in known) / len(known)}
    if CLASS not in name:
        examples = sum(size for _, size in known)
        means[f"{name}_weighted"] = sum(value * size for value, size in known) / examples
    if missing := len(values) - len(known):
        means[f"{name}_undefined"] = float(missing)
    return means
