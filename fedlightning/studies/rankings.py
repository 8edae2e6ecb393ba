"""Rank all variants at once: Friedman's test, and the critical difference of Nemenyi's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedlightning.core.main_metric import MainMetric
from fedlightning.studies.results import Collection, Group
from fedlightning.studies.run_reader import Numbers
from fedlightning.studies.seed_tests import DIGITS, LEVEL, result_of

__all__ = ["Ranking", "rank_conditions", "rank_seeds", "rank_table"]

_ACCURACY = MainMetric()
_FEWEST_VARIANTS = 3
_FEWEST_BLOCKS = 2


@dataclass(frozen=True)
class Ranking:
    """The mean ranks of some variants, and which of them can be told apart.

    Args:
        variants: The variants, the best mean rank first.
        mean_ranks: Their mean ranks; 1 is the best.
        blocks: In how many blocks they were ranked.
        unit: What a block is: ``seeds`` or ``conditions``.
        statistic: Friedman's chi squared.
        p_value: Its p.
        critical_difference: Mean ranks that are this far apart differ at the level 0.05.
        p_pairs: Nemenyi's p of each pair, in the order of ``variants``.
    """

    variants: tuple[str, ...]
    mean_ranks: tuple[float, ...]
    blocks: int
    unit: str
    statistic: float
    p_value: float
    critical_difference: float
    p_pairs: Numbers

    @property
    def alike(self) -> list[tuple[int, int]]:
        """The largest runs of variants that cannot be told apart, as first and last index."""
        found: list[tuple[int, int]] = []
        for first, rank in enumerate(self.mean_ranks):
            near = [at for at, other in enumerate(self.mean_ranks)
                    if at >= first and other - rank < self.critical_difference]  # fmt: skip
            if near[-1] > first and (not found or near[-1] > found[-1][1]):
                found.append((first, near[-1]))
        return found


def rank_table(
    values: Sequence[Sequence[float]] | Numbers,
    variants: Sequence[str],
    metric: MainMetric = _ACCURACY,
    unit: str = "seeds",
) -> Ranking:
    """Rank variants in each block, and test whether their mean ranks differ.

    Equal values share the mean of their ranks. With ``k`` variants in ``N`` blocks the critical
    difference is ``q sqrt(k (k + 1) / 6 N)``, ``q`` being the quantile of the studentized range of
    ``k`` means with infinite degrees of freedom, divided by the root of 2.

    Args:
        values: A row for each block, a column for each variant.
        variants: The columns' names.
        metric: What the values are of, which says which are better, and which are equal.
        unit: What a block is.

    Source:
        Friedman. The use of ranks to avoid the assumption of normality. JASA 32, 1937.
        Nemenyi. Distribution-free multiple comparisons. Princeton, 1963.
        Demšar. Statistical comparisons of classifiers over multiple data sets. JMLR 7, 2006.

    Example:
        >>> ranking = rank_table([[0.9, 0.5, 0.7], [0.8, 0.4, 0.6]], ["A", "B", "C"])
        >>> ranking.variants, ranking.mean_ranks, ranking.alike
        (('A', 'C', 'B'), (1.0, 2.0, 3.0), [(0, 2)])
    """
    from scipy.stats import friedmanchisquare, rankdata, studentized_range

    table = np.asarray(values, float)
    blocks, count = table.shape
    rounded = np.array([np.round(row, metric.decimals(row, DIGITS)) for row in table])
    ranks = rankdata(-metric.sign * rounded, axis=1)
    means = ranks.mean(axis=0)
    order = np.argsort(means, kind="stable")
    if (ranks == ranks[:, :1]).all():
        statistic, p_value = 0.0, 1.0  # all tie: the statistic is 0 by 0
    else:
        result = friedmanchisquare(*ranks.T)
        statistic, p_value = float(result.statistic), float(result.pvalue)
    scale = math.sqrt(count * (count + 1) / (6 * blocks))
    quantile = float(studentized_range.ppf(1 - LEVEL, count, np.inf)) / math.sqrt(2)
    apart = np.abs(np.subtract.outer(means[order], means[order])) / scale
    p_pairs = studentized_range.sf(apart * math.sqrt(2), count, np.inf)
    return Ranking(
        tuple(variants[at] for at in order),
        tuple(float(means[at]) for at in order),
        blocks,
        unit,
        statistic,
        p_value,
        quantile * scale,
        np.asarray(p_pairs, float),
    )


def rank_seeds(groups: Sequence[Group], metric: str = "acc_after") -> Ranking | None:
    """Rank the variants of one condition in each seed that all of them have.

    Returns:
        The ranking; ``None`` for fewer than three variants or two seeds.
    """
    shared = set.intersection(*(set(group.runs) for group in groups)) if groups else set()
    rows = []
    for seed in sorted(shared):
        runs = [group.runs[seed] for group in groups]
        row = [result_of(run, metric) for run in runs]
        if len({run.partition for run in runs}) == 1 and not any(map(math.isnan, row)):
            rows.append(row)
    return _ranking(rows, groups, "seeds")


def rank_conditions(collection: Collection, metric: str = "acc_after") -> Ranking | None:
    """Rank the variants in each condition that has all of them, by their means over seeds.

    Returns:
        The ranking; ``None`` for fewer than three variants or two conditions.
    """
    variants, rows = collection.variants, []
    for condition in collection.conditions:
        groups = {group.variant: group for group in collection.of(condition)}
        if set(groups) == set(variants):
            means = [
                float(np.mean([result_of(run, metric) for run in groups[name].runs.values()]))
                for name in variants
            ]
            if not any(map(math.isnan, means)):
                rows.append(means)
    by_name = {group.variant: group for group in collection.groups}
    return _ranking(rows, [by_name[name] for name in variants], "conditions")


def _ranking(rows: list[list[float]], groups: Sequence[Group], unit: str) -> Ranking | None:
    if len(rows) < _FEWEST_BLOCKS or len(groups) < _FEWEST_VARIANTS:
        return None
    return rank_table(rows, [group.variant for group in groups], groups[0].main_metric, unit)
