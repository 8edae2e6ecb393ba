"""Compare variants with the seed as the unit: intervals, tests and effect sizes over seeds.

A seed draws partition, initial weights and cohorts anew, so its runs repeat the experiment; the
clients of one seed share a model, and do not.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from fedlightning.studies.paired_tests import Family, compare_groups, holm, signed_rank
from fedlightning.studies.results import Group
from fedlightning.studies.run_reader import Numbers, Run

__all__ = [
    "DIGITS",
    "LEVEL",
    "SeedTest",
    "WithinSeeds",
    "cliffs_delta",
    "interval",
    "result_of",
    "seed_tests",
    "within_seeds",
]

LEVEL = 0.05
DIGITS = 9
"""Two means over clients are the same if they differ beyond so many digits of their scale."""


@dataclass(frozen=True)
class SeedTest:
    """One comparison of two variants over the seeds that both have.

    Args:
        condition: The point of the grid.
        family: The comparisons that are corrected together.
        variant: The first variant.
        other: The second variant.
        seeds: Number of pairs: a pair is a seed, with the same partition under both variants.
        mean_difference: Mean over seeds of the difference in the main metric, first minus second.
        low: Lower end of its 95 % confidence interval by Student's t; nan for one seed.
        high: Upper end.
        better: Number of seeds in which the first is better.
        ties: Number of seeds without a difference.
        worse: Number of seeds in which the first is worse.
        cohens_d: Cohen's d of paired values, mean over standard deviation of the differences
            (``ddof=1``); positive in favour of the first.
        cliffs_delta: Cliff's delta in -1..1; positive in favour of the first.
        statistic: Student's t of the paired test.
        p_value: Its two-sided p; nan for one seed, or where no seed differs from another.
        p_holm: Corrected within the family by Holm's method.
        p_signed_rank: Two-sided p of Wilcoxon's signed-rank test over seeds; nan for fewer than
            six.
        note: Remarks.

    Source:
        Cohen. Statistical Power Analysis for the Behavioral Sciences. 1988.
        Cliff. Dominance statistics. Psychological Bulletin 114, 1993.
    """

    condition: str
    family: Family
    variant: str
    other: str
    seeds: int
    mean_difference: float
    low: float
    high: float
    better: int
    ties: int
    worse: int
    cohens_d: float
    cliffs_delta: float
    statistic: float
    p_value: float
    p_holm: float = math.nan
    p_signed_rank: float = math.nan
    note: str = ""

    @property
    def finding(self) -> str:
        """What was found, in words about seeds.

        Example:
            >>> test = SeedTest("", "baseline", "A", "B", 5, .1, .05, .15, 4, 0, 1, 1., 1., 3., .04)
            >>> test.finding
            'better in 4 of 5 seeds; the interval excludes 0'
        """
        if not self.seeds:
            return self.note
        count, word = max((self.better, "better"), (self.worse, "worse"), key=lambda pair: pair[0])
        text = f"{word} in {count} of {self.seeds} seed{'s' if self.seeds > 1 else ''}"
        if self.better == self.worse:
            text = f"better in {self.better}, worse in {self.worse} of {self.seeds} seeds"
            text = text if self.better else f"the same in {self.ties} of {self.seeds} seeds"
        if not math.isnan(self.low):
            excluded = self.low > 0 or self.high < 0
            text += f"; the interval {'excludes' if excluded else 'includes'} 0"
        return f"{text}; {self.note}" if self.note else text


@dataclass(frozen=True)
class WithinSeeds:
    """Tests over the clients of one seed at a time, counted over seeds.

    Args:
        variant: The first variant.
        other: The second variant.
        tested: Number of seeds with enough clients for a test.
        better: In how many of them the first is better at the level 0.05.
        worse: In how many it is worse.
        p_values: Wilcoxon's two-sided p over the clients of each seed.
    """

    variant: str
    other: str
    tested: int
    better: int
    worse: int
    p_values: tuple[float, ...]


def result_of(run: Run, metric: str = "acc_after") -> float:
    """Return the number that stands for a run: a mean over clients, else the global model's."""
    values = run.values(metric)
    return float(values.mean()) if values.size else run.last_global()


def interval(values: Sequence[float] | Numbers, level: float = LEVEL) -> tuple[float, float]:
    """Return the confidence interval of a mean by Student's t.

    ``mean ± t(1 - level/2, n - 1) s / sqrt(n)`` for ``n`` values of standard deviation ``s``
    (``ddof=1``); nan for fewer than two.

    Args:
        values: One value for each seed.
        level: One minus the coverage.

    Example:
        >>> [round(end, 3) for end in interval([1.0, 2.0, 3.0])]
        [-0.484, 4.484]
    """
    from scipy.stats import t

    known = np.asarray(values, float)
    if known.size < 2:
        return math.nan, math.nan
    half = float(t.ppf(1 - level / 2, known.size - 1) * known.std(ddof=1) / math.sqrt(known.size))
    return float(known.mean()) - half, float(known.mean()) + half


def cliffs_delta(first: Sequence[float] | Numbers, second: Sequence[float] | Numbers) -> float:
    """Return the share of pairs with ``first > second`` minus that with ``first < second``.

    Example:
        >>> cliffs_delta([1.0, 2.0, 3.0], [0.0, 2.0])
        0.5
    """
    apart = np.subtract.outer(np.asarray(first, float), np.asarray(second, float))
    return float(np.sign(apart).mean()) if apart.size else math.nan


def seed_tests(groups: Sequence[Group], baseline: str, metric: str = "acc_after") -> list[SeedTest]:
    """Compare every group of a condition with one, and all pairs, each family corrected by itself.

    Args:
        groups: The groups of one condition.
        baseline: The variant that the others are compared with.
        metric: ``acc_after`` or ``acc_before``.
    """
    first = next((group for group in groups if group.variant == baseline), None)
    others = [group for group in groups if group is not first]
    against = [] if first is None else [_compare(g, first, "baseline", metric) for g in others]
    pairs = [
        _compare(one, two, "all pairs", metric) for one, two in itertools.combinations(groups, 2)
    ]
    return [*_corrected(against), *_corrected(pairs)]


def within_seeds(one: Group, two: Group, metric: str = "acc_after") -> WithinSeeds:
    """Test two groups over the clients of each seed by itself."""
    tests = [
        compare_groups(_only(one, seed), _only(two, seed), metric=metric)
        for seed in sorted(one.runs.keys() & two.runs.keys())
    ]
    known = [test for test in tests if not math.isnan(test.p_value)]
    found = [test for test in known if test.p_value < LEVEL]
    return WithinSeeds(
        one.variant,
        two.variant,
        len(known),
        sum(test.rank_biserial > 0 for test in found),
        sum(test.rank_biserial < 0 for test in found),
        tuple(test.p_value for test in known),
    )


def _only(group: Group, seed: int) -> Group:
    return replace(group, runs={seed: group.runs[seed]})


def _compare(one: Group, two: Group, family: Family, metric: str) -> SeedTest:
    shared = sorted(one.runs.keys() & two.runs.keys())
    same = [seed for seed in shared if one.runs[seed].partition == two.runs[seed].partition]
    pairs = np.array(
        [(result_of(one.runs[seed], metric), result_of(two.runs[seed], metric)) for seed in same]
    ).reshape(-1, 2)
    pairs = pairs[~np.isnan(pairs).any(axis=1)]
    differences = pairs[:, 0] - pairs[:, 1]
    sign, count = one.main_metric.sign, differences.size
    decimals = one.main_metric.decimals(pairs.flat, DIGITS)
    same_below = float(f"1e{-decimals}")
    favour = np.where(np.abs(differences) < same_below, 0.0, sign * differences)
    notes = [f"{len(shared) - len(same)} seed(s) left out: different partitions"] * (
        len(same) < len(shared)
    )
    low, high = interval(differences)
    spread = float(differences.std(ddof=1)) if count > 1 else math.nan
    if count < 2:
        notes.append("one seed has no interval" if count else "no seed in common")
    elif spread < same_below:
        notes.append("the same difference in every seed")
    statistic = p_value = effect = math.nan
    if count > 1 and spread >= same_below:
        statistic, p_value = _paired_t(pairs)
        effect = sign * float(differences.mean()) / spread
    return SeedTest(
        one.condition,
        family,
        one.variant,
        two.variant,
        count,
        float(differences.mean()) if count else math.nan,
        low,
        high,
        int((favour > 0).sum()),
        int((favour == 0).sum()),
        int((favour < 0).sum()),
        effect,
        sign * cliffs_delta(pairs[:, 0], pairs[:, 1]),
        statistic,
        p_value,
        p_signed_rank=signed_rank(np.round(differences, decimals))[1],
        note="; ".join(notes),
    )


def _paired_t(pairs: Numbers) -> tuple[float, float]:
    from scipy.stats import ttest_rel

    result = ttest_rel(pairs[:, 0], pairs[:, 1])
    return float(result.statistic), float(result.pvalue)


def _corrected(tests: list[SeedTest]) -> list[SeedTest]:
    p_values = holm([test.p_value for test in tests])
    return [replace(test, p_holm=p) for test, p in zip(tests, p_values, strict=True)]
