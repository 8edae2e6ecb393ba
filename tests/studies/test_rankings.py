import math

import numpy as np
import pytest
from scipy import stats

from fedlightning.core.main_metric import MainMetric
from fedlightning.studies.rankings import rank_conditions, rank_seeds, rank_table
from fedlightning.studies.results import collect

# Demšar, JMLR 7, 2006, table 5a: q at 0.05 for the two-tailed Nemenyi test
Q = {3: 2.343, 4: 2.569, 5: 2.728, 10: 3.164}


@pytest.mark.parametrize("count", Q)
def test_the_critical_difference_is_that_of_demsars_table(count):
    rng = np.random.default_rng(count)
    found = rank_table(rng.normal(size=(14, count)), [str(at) for at in range(count)])
    expected = Q[count] * math.sqrt(count * (count + 1) / (6 * 14))
    assert found.critical_difference == pytest.approx(expected, abs=1e-3)


def test_ranks_by_hand_and_friedman_by_scipy():
    values = [[0.9, 0.5, 0.7], [0.8, 0.8, 0.6], [0.9, 0.4, 0.5], [0.7, 0.3, 0.6]]
    found = rank_table(values, ["A", "B", "C"])
    assert found.variants == ("A", "C", "B")
    # A: 1, 1.5, 1, 1; B: 3, 1.5, 3, 3; C: 2, 3, 2, 2
    assert found.mean_ranks == (4.5 / 4, 9 / 4, 10.5 / 4)
    expected = stats.friedmanchisquare(*np.transpose(values))
    assert (found.statistic, found.p_value) == pytest.approx(expected)


def test_nemenyis_p_is_that_of_the_studentized_range():
    rng = np.random.default_rng(0)
    found = rank_table(rng.normal(size=(6, 4)) + np.arange(4), list("ABCD"))
    apart = found.mean_ranks[2] - found.mean_ranks[0]
    scale = math.sqrt(4 * 5 / (6 * 6))
    expected = stats.studentized_range.sf(apart / scale * math.sqrt(2), 4, np.inf)
    assert found.p_pairs[0, 2] == pytest.approx(expected)
    for first in range(4):
        for second in range(first + 1, 4):
            near = found.mean_ranks[second] - found.mean_ranks[first] < found.critical_difference
            assert near == (found.p_pairs[first, second] > 0.05)


def test_bars_are_the_largest_runs_that_cannot_be_told_apart():
    order = np.tile(np.arange(6.0), (20, 1))  # ranks 6..1 in every block; CD = 1.69
    found = rank_table(order, list("ABCDEF"))
    assert found.mean_ranks == (1, 2, 3, 4, 5, 6)
    assert found.critical_difference == pytest.approx(2.850 * math.sqrt(42 / 120), abs=1e-3)
    assert found.alike == [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5)]
    few = rank_table(order[:2], list("ABCDEF"))  # CD = 5.3
    assert few.alike == [(0, 5)]


def test_less_may_be_better_and_all_may_tie():
    less = rank_table([[1, 2, 3]] * 2, ["A", "B", "C"], MainMetric("loss", "min"))
    assert less.variants == ("A", "B", "C")
    tie = rank_table([[1, 1, 1]] * 2, ["A", "B", "C"])
    assert (tie.p_value, tie.mean_ranks, tie.alike) == (1.0, (2, 2, 2), [(0, 2)])


def test_seeds_are_blocks_and_so_are_conditions(make_run, tmp_path):
    for condition in ("a=1", "a=2"):
        for seed in (0, 1, 2):
            for at, name in enumerate(("FedAvg", "FedBABU", "FedProx")):
                if (name, seed) != ("FedProx", 2):
                    make_run(name, seed, [0.3 + 0.1 * at, 0.5 + 0.1 * at], condition=condition)
    collection = collect([tmp_path])
    in_one = rank_seeds(collection.of("a=1"))
    assert (in_one.blocks, in_one.unit) == (2, "seeds"), "FedProx has no third seed"
    assert in_one.variants == ("FedProx", "FedBABU", "FedAvg")
    over_all = rank_conditions(collection)
    assert (over_all.blocks, over_all.unit, over_all.mean_ranks) == (2, "conditions", (1, 2, 3))
    assert rank_seeds(collection.of("a=1")[:2]) is None
