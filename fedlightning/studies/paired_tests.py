"""Test whether two variants differ, client by client: Wilcoxon's signed-rank test."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from fedlightning.studies.results import Group
from fedlightning.studies.run_reader import Numbers

__all__ = [
    "FEWEST_PAIRS",
    "PairedTest",
    "against_baseline",
    "all_pairs",
    "compare_groups",
    "holm",
    "signed_rank",
]

FEWEST_PAIRS = 6
"""With five pairs that all differ in the same direction the two-sided p is still 1/16."""

_DIGITS = 6
"""Two values of a metric are the same if they differ beyond so many digits of its scale."""

Family = Literal["baseline", "all pairs"]


@dataclass(frozen=True)
class PairedTest:
    """One comparison of two variants.

    A pair is a client of one seed: the same client, with the same data, under both variants.

    Args:
        condition: The point of the grid.
        family: The comparisons that are corrected together.
        variant: The first variant.
        other: The second variant.
        pairs: Number of pairs, including ties.
        seeds: Number of seeds that both have, with the same partition.
        mean_difference: Mean difference in the main metric, first minus second.
        median_difference: Median difference.
        better: Number of pairs in which the first is better.
        ties: Number of pairs without a difference.
        worse: Number of pairs in which the first is worse.
        seeds_better: Number of seeds in which the first is better in the mean over clients.
        rank_biserial: Effect size in -1..1: the share of the rank sum in favour minus that against.
        statistic: Wilcoxon's statistic.
        p_value: Two-sided p-value; nan for too few pairs.
        p_holm: Corrected within the family by Holm's method.
        note: Remarks.
    """

    condition: str
    family: Family
    variant: str
    other: str
    pairs: int
    seeds: int
    mean_difference: float
    median_difference: float
    better: int
    ties: int
    worse: int
    seeds_better: int
    rank_biserial: float
    statistic: float
    p_value: float
    p_holm: float = math.nan
    note: str = ""


def against_baseline(
    groups: Sequence[Group], baseline: str, metric: str = "acc_after"
) -> list[PairedTest]:
    """Test every other group of a condition against one, corrected over these tests."""
    first = next((group for group in groups if group.variant == baseline), None)
    if first is None:
        return []
    others = [group for group in groups if group is not first]
    return _corrected([compare_groups(group, first, "baseline", metric) for group in others])


def all_pairs(groups: Sequence[Group], metric: str = "acc_after") -> list[PairedTest]:
    """Test all pairs of groups of a condition, corrected over these tests."""
    pairs = itertools.combinations(groups, 2)
    return _corrected([compare_groups(one, two, "all pairs", metric) for one, two in pairs])


def compare_groups(
    one: Group, two: Group, family: Family = "all pairs", metric: str = "acc_after"
) -> PairedTest:
    """Test whether two groups differ in a number of their clients.

    Zero differences are ranked, but belong to neither sum (Pratt). Seeds with different partitions
    are left out: their clients are not the same.

    Args:
        one: The first group.
        two: The second group.
        family: The comparisons that are corrected together.
        metric: ``acc_after`` or ``acc_before``: the main metric after or before personalization.

    Source:
        Wilcoxon. Individual comparisons by ranking methods. Biometrics Bulletin 1, 1945.
        Pratt. Remarks on zeros and ties in the Wilcoxon signed rank procedures. JASA 54, 1959.
    """
    pairs: list[Numbers] = []
    other_data = 0
    for seed in sorted(one.runs.keys() & two.runs.keys()):
        first, second = one.runs[seed], two.runs[seed]
        if first.partition != second.partition:
            other_data += 1
            continue
        mine, its = (
            {
                record.client_id: value
                for record in run.clients
                if not math.isnan(value := run.value_of(record, metric))
            }
            for run in (first, second)
        )
        shared = sorted(mine.keys() & its.keys())
        pairs.append(np.array([(mine[client], its[client]) for client in shared]).reshape(-1, 2))
    main = one.main_metric
    # values such as accuracies are float32 quotients: rounding makes equal ones ties
    decimals = main.decimals((value for part in pairs for value in part.flat), _DIGITS)
    by_seed = [np.round(part[:, 0] - part[:, 1], decimals) for part in pairs]
    every = np.concatenate(by_seed) if by_seed else np.empty(0)
    favour = main.sign * every
    statistic, p_value = signed_rank(every)
    return PairedTest(
        condition=one.condition,
        family=family,
        variant=one.variant,
        other=two.variant,
        pairs=every.size,
        seeds=len(by_seed),
        mean_difference=float(every.mean()) if every.size else math.nan,
        median_difference=float(np.median(every)) if every.size else math.nan,
        better=int((favour > 0).sum()),
        ties=int((favour == 0).sum()),
        worse=int((favour < 0).sum()),
        seeds_better=sum(
            bool(part.size and main.sign * np.round(part.mean(), decimals + _DIGITS) > 0)
            for part in by_seed
        ),
        rank_biserial=_rank_biserial(favour),
        statistic=statistic,
        p_value=p_value,
        note=_note(every, other_data),
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number by Holm's step-down method; nan stays nan.

    Source:
        Holm. A simple sequentially rejective multiple test procedure. Scand. J. Statist. 6, 1979.

    Example:
        >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
        [0.03, 0.06, 0.06]
    """
    known = sorted((p, at) for at, p in enumerate(p_values) if not math.isnan(p))
    corrected = [math.nan] * len(p_values)
    least = 0.0
    for rank, (p, at) in enumerate(known):
        least = max(least, min(1.0, (len(known) - rank) * p))
        corrected[at] = least
    return corrected


def _corrected(tests: list[PairedTest]) -> list[PairedTest]:
    p_values = holm([test.p_value for test in tests])
    return [replace(test, p_holm=p) for test, p in zip(tests, p_values, strict=True)]


def signed_rank(differences: Numbers) -> tuple[float, float]:
    """Return Wilcoxon's statistic and its two-sided p; nan for too few pairs that differ."""
    from scipy.stats import wilcoxon

    if differences.size < FEWEST_PAIRS:
        return math.nan, math.nan
    if not differences.any():
        return 0.0, 1.0
    if np.count_nonzero(differences) < FEWEST_PAIRS:
        return math.nan, math.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the sample is small
        result = wilcoxon(differences, zero_method="pratt")
    return float(result.statistic), float(result.pvalue)


def _rank_biserial(differences: Numbers) -> float:
    """Return the matched-pairs rank-biserial correlation, ties left out."""
    from scipy.stats import rankdata

    moved = differences[differences != 0]
    if not moved.size:
        return 0.0 if differences.size else math.nan
    ranks = rankdata(np.abs(moved))
    return float((ranks * np.sign(moved)).sum() / ranks.sum())


def _note(differences: Numbers, other_data: int) -> str:
    notes = []
    if other_data:
        notes.append(f"{other_data} seed(s) left out: different partitions")
    if differences.size < FEWEST_PAIRS:
        notes.append(f"too few pairs: {differences.size}, at least {FEWEST_PAIRS} are needed")
    elif not differences.any():
        notes.append("no pair differs")
    elif (count := np.count_nonzero(differences)) < FEWEST_PAIRS:
        notes.append(f"too few pairs that differ: {count}, at least {FEWEST_PAIRS} are needed")
    return "; ".join(notes)
