import csv
import math

import numpy as np
import pytest
from scipy import stats

from fedlightning.__main__ import main
from fedlightning.studies.results import collect
from fedlightning.studies.seed_tests import cliffs_delta, interval, seed_tests, within_seeds

MINE = [0.81, 0.84, 0.79, 0.90, 0.77]
ITS = [0.78, 0.80, 0.80, 0.84, 0.75]


@pytest.fixture
def two(make_run, tmp_path):
    """Two variants, five seeds; the clients of a seed are its mean and as far off both ways."""
    for seed, (mine, its) in enumerate(zip(MINE, ITS, strict=True)):
        make_run("FedBABU", seed, [mine - 0.1, mine, mine + 0.1])
        make_run("FedAvg", seed, [its - 0.05, its, its + 0.05])
    return collect([tmp_path], order=["FedBABU", "FedAvg"]).groups


def test_the_unit_is_the_seed_not_the_client(two):
    test, pair = seed_tests(two, "FedAvg")
    expected = stats.ttest_rel(MINE, ITS)
    ends = expected.confidence_interval(0.95)
    assert test.seeds == 5, "fifteen clients a variant"
    assert test.mean_difference == pytest.approx(np.mean(MINE) - np.mean(ITS))
    assert (test.low, test.high) == pytest.approx((ends.low, ends.high))
    assert test.statistic == pytest.approx(expected.statistic)
    assert test.p_value == pytest.approx(expected.pvalue)
    differences = np.subtract(MINE, ITS)
    assert test.cohens_d == pytest.approx(differences.mean() / differences.std(ddof=1))
    assert (test.better, test.ties, test.worse) == (4, 0, 1)
    assert math.isnan(test.p_signed_rank), "five pairs are too few"
    assert (pair.family, pair.variant, pair.p_holm) == ("all pairs", "FedBABU", pair.p_value)


def test_a_finding_counts_seeds(two):
    (test, _) = seed_tests(two, "FedAvg")
    zero = "includes" if test.low < 0 < test.high else "excludes"
    assert test.finding == f"better in 4 of 5 seeds; the interval {zero} 0"
    (back, _) = seed_tests(two, "FedBABU")
    assert back.finding.startswith("worse in 4 of 5 seeds")
    assert back.cohens_d == pytest.approx(-test.cohens_d)


def test_less_is_better_turns_effects_and_counts_but_no_difference(make_run, tmp_path):
    for seed, (mine, its) in enumerate(zip(MINE, ITS, strict=True)):
        for name, value in (("A", mine), ("B", its)):
            metrics = f"round,train/loss,test/mae\n0,1,1\n1,1,{value}\n"
            folder = make_run(name, seed, clients=False, metrics=metrics)
            (folder / "config.yaml").write_text(
                f"seed_everything: {seed}\nfederation: {{main_metric: mae}}\n"
                "trainer: {max_epochs: 2}\n"
            )
    one, _ = seed_tests(collect([tmp_path]).groups, "B")
    assert one.mean_difference == pytest.approx(np.mean(MINE) - np.mean(ITS))
    assert (one.better, one.worse) == (1, 4)
    assert one.cohens_d < 0
    assert one.cliffs_delta == pytest.approx(-cliffs_delta(MINE, ITS))


def test_cliffs_delta_counts_pairs_by_hand():
    assert cliffs_delta([3, 4], [1, 2]) == 1.0
    assert cliffs_delta([1, 2], [2, 3]) == (0 + 0 - 3) / 4
    assert math.isnan(cliffs_delta([], []))


def test_an_interval_by_the_table_of_t():
    # three values: t(0.975, 2) = 4.30265, s = 1, mean 2
    assert interval([1, 2, 3]) == pytest.approx((2 - 4.30265 / 3**0.5, 2 + 4.30265 / 3**0.5), 1e-5)
    assert all(map(math.isnan, interval([1.0])))


def test_one_seed_has_no_interval_and_equal_differences_no_p(make_run, tmp_path):
    make_run("FedAvg", 0, [0.5, 0.5])
    make_run("FedBABU", 0, [0.75, 0.75])
    alone, _ = seed_tests(collect([tmp_path]).groups, "FedAvg")
    assert (alone.seeds, alone.mean_difference) == (1, 0.25)
    assert alone.finding == "better in 1 of 1 seed; one seed has no interval"
    make_run("FedAvg", 1, [0.25, 0.25])
    make_run("FedBABU", 1, [0.5, 0.5])
    same, _ = seed_tests(collect([tmp_path]).groups, "FedAvg")
    assert (same.low, same.high) == (0.25, 0.25)
    assert math.isnan(same.p_value)
    assert "the same difference in every seed" in same.note


def test_seeds_with_different_partitions_are_no_pairs(make_run, tmp_path):
    for seed in (0, 1, 2):
        make_run("FedAvg", seed, [0.5], partition="other" if seed == 2 else "same")
        make_run("FedBABU", seed, [0.6 + 0.01 * seed])
    test, _ = seed_tests(collect([tmp_path]).groups, "FedAvg")
    assert test.seeds == 2
    assert "1 seed(s) left out: different partitions" in test.note


def test_clients_are_tested_within_each_seed(make_run, tmp_path):
    rng = np.random.default_rng(0)
    better = [0, 0, 0]
    for seed, shift in enumerate((0.3, 0.0, -0.3)):
        mine, its = rng.uniform(0, 0.4, 20) + 0.3 + shift, rng.uniform(0, 0.4, 20) + 0.3
        make_run("A", seed, mine.tolist())
        make_run("B", seed, its.tolist())
        better[seed] = stats.wilcoxon(np.round(mine - its, 6), zero_method="pratt").pvalue
    found = within_seeds(*collect([tmp_path]).groups)
    assert found.p_values == pytest.approx(better)
    assert better[0] < 0.05 < better[1]
    assert (found.tested, found.better, found.worse) == (3, 1, 1)


def test_a_report_words_findings_by_seeds_and_writes_them(two, tmp_path):
    assert main(["report", str(tmp_path), "--baseline=FedAvg"]) == 0
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "better in 4 of 5 seeds" in text
    assert "Clients within seeds" in text
    with (tmp_path / "seed_tests.csv").open(encoding="utf-8", newline="") as file:
        row = next(csv.DictReader(file))
    assert (row["variant"], row["other"], row["seeds"]) == ("FedBABU", "FedAvg", "5")
    assert float(row["p_value"]) == pytest.approx(stats.ttest_rel(MINE, ITS).pvalue)
