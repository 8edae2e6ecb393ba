import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import rankdata, ttest_rel, wilcoxon

from fedlightning.core.main_metric import MainMetric
from fedlightning.studies.paired_tests import (
    FEWEST_PAIRS,
    against_baseline,
    all_pairs,
    compare_groups,
    holm,
)
from fedlightning.studies.rankings import rank_seeds
from fedlightning.studies.results import collect
from fedlightning.studies.seed_tests import seed_tests
from fedlightning.studies.statistics import summarise

TEN = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]


def test_a_summary_by_hand(make_run, tmp_path):
    make_run("FedAvg", 0, [0.5, 0.7], before=[0.1, 0.3])
    make_run("FedAvg", 1, [0.6, 1.0], before=[0.2, 0.2])
    (summary,) = summarise(collect([tmp_path]).groups)
    assert (summary.seeds, summary.clients) == (2, 2)
    assert summary.acc_before == pytest.approx(0.2)
    assert summary.acc_before_std_seeds == pytest.approx(0.0)
    assert summary.acc_after == pytest.approx((0.6 + 0.8) / 2)
    assert summary.acc_after_std_seeds == pytest.approx(math.sqrt(2 * 0.1**2))
    assert summary.acc_after_std_clients == pytest.approx((0.1 + 0.2) / 2)
    assert summary.acc_after_min == pytest.approx((0.5 + 0.6) / 2)
    assert summary.global_acc == 0.5
    assert summary.seconds_training == pytest.approx(1.0)
    assert summary.seconds_wall == 7.0


def test_gains_over_local_only_and_over_fedavg_with_tuning(make_run, tmp_path):
    make_run("alone", 0, [0.5, 0.5], algorithm="LocalOnly")
    make_run("FedAvg", 0, [0.6, 0.6])
    make_run("FedBABU", 0, [0.9, 0.9])
    found = {summary.variant: summary for summary in summarise(collect([tmp_path]).groups)}
    assert found["FedBABU"].gain_over_local == pytest.approx(0.4)
    assert found["FedBABU"].gain_over_fedavg_ft == pytest.approx(0.3)
    assert math.isnan(found["FedAvg"].gain_over_fedavg_ft)
    assert math.isnan(found["alone"].gain_over_local)


def test_bytes_are_per_round(make_run, tmp_path):
    header = "round,communication/bytes_up,communication/bytes_down\n"
    make_run("FedAvg", metrics=header + "0,100,300\n1,200,300\n")
    (summary,) = summarise(collect([tmp_path]).groups)
    assert (summary.bytes_up_per_round, summary.bytes_down_per_round) == (150.0, 300.0)


def test_wilcoxon_over_clients_of_all_seeds(make_run, tmp_path):
    rng = np.random.default_rng(0)
    mine = rng.integers(0, 21, size=(2, 30)) / 20
    its = rng.integers(0, 21, size=(2, 30)) / 20
    for seed in (0, 1):
        make_run("FedAvg", seed, mine[seed])
        make_run("FedBABU", seed, its[seed])
    one, two = collect([tmp_path]).groups
    test = compare_groups(one, two)
    differences = np.round((mine - its).ravel(), 6)
    expected = wilcoxon(differences, zero_method="pratt")
    assert test.pairs == 60
    assert test.p_value == pytest.approx(expected.pvalue)
    assert test.better + test.ties + test.worse == 60
    assert test.ties == (differences == 0).sum() > 0
    assert test.mean_difference == pytest.approx(differences.mean())


@pytest.mark.parametrize("by", [1e-7, 1.0, 1e9])
def test_what_is_equal_does_not_depend_on_the_scale_of_the_metric(make_run, tmp_path, by):
    steps = np.random.default_rng(0).integers(0, 6, size=(3, 10, 8))  # variants, seeds, clients
    for name, of_seeds in zip("ABC", steps, strict=True):
        for seed, values in enumerate(of_seeds):
            make_run(name, seed, values / 20, algorithm="FedAvg")
    groups = [scaled(group, by) for group in collect([tmp_path]).groups]

    test = compare_groups(*groups[:2])
    apart = (steps[0] - steps[1]).ravel()
    counts = ((apart < 0).sum(), (apart == 0).sum(), (apart > 0).sum())  # less is better
    assert (test.better, test.ties, test.worse) == counts
    assert test.p_value == pytest.approx(wilcoxon(apart, zero_method="pratt").pvalue)
    assert test.seeds_better == (steps[0].sum(axis=1) < steps[1].sum(axis=1)).sum()

    sums = steps.sum(axis=2)
    over_seeds, *_ = seed_tests(groups, "B")
    assert (over_seeds.better, over_seeds.ties, over_seeds.worse) == (
        (sums[0] < sums[1]).sum(), (sums[0] == sums[1]).sum(), (sums[0] > sums[1]).sum(),
    )  # fmt: skip
    assert over_seeds.p_value == pytest.approx(ttest_rel(sums[0], sums[1]).pvalue)
    expected = wilcoxon(sums[0] - sums[1], zero_method="pratt").pvalue
    assert over_seeds.p_signed_rank == pytest.approx(expected)

    ranking = rank_seeds(groups)
    means = dict(zip("ABC", rankdata(sums, axis=0).mean(axis=1), strict=True))
    assert dict(zip(ranking.variants, ranking.mean_ranks, strict=True)) == pytest.approx(means)


def test_a_seed_of_equal_means_is_no_better_one(make_run, tmp_path):
    make_run("FedAvg", 0, np.array([3, 3, 3, 5, 1, 4, 4, 0]) / 20)
    make_run("FedBABU", 0, np.array([5, 0, 3, 4, 5, 3, 2, 1]) / 20)
    one, two = collect([tmp_path]).groups
    assert compare_groups(one, two).seeds_better == compare_groups(two, one).seeds_better == 0


def scaled(group, by):
    """Return a group's runs by a metric on another scale, of which less is better."""
    runs = {
        seed: replace(run, main_metric=MainMetric("mse", "min"), views={"": [
            replace(each, others={"mse_after": by * each.acc_after}) for each in run.clients
        ]})
        for seed, run in group.runs.items()
    }  # fmt: skip
    return replace(group, runs=runs)


def test_six_pairs_of_one_direction_are_the_fewest_that_can_be_told(make_run, tmp_path):
    make_run("FedAvg", 0, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    make_run("FedBABU", 0, [0.2, 0.4, 0.6, 0.8, 0.95, 0.99])
    (test,) = against_baseline(collect([tmp_path]).groups, "FedBABU")
    assert test.pairs == FEWEST_PAIRS
    assert test.p_value == pytest.approx(2 / 2**6)
    assert test.rank_biserial == -1.0
    assert (test.better, test.worse, test.seeds_better) == (0, 6, 0)


def test_too_few_pairs_are_said_to_be_too_few(make_run, tmp_path):
    make_run("FedAvg", 0, [0.1, 0.2])
    make_run("FedBABU", 0, [0.2, 0.4])
    (test,) = all_pairs(collect([tmp_path]).groups)
    assert math.isnan(test.p_value)
    assert math.isnan(test.p_holm)
    assert test.note == "too few pairs: 2, at least 6 are needed"


def test_zero_differences(make_run, tmp_path):
    make_run("FedAvg", 0, TEN)
    make_run("FedBABU", 0, TEN)
    make_run("FedProx", 0, [*TEN[:-1], 0.9])
    same, nearly, _ = all_pairs(collect([tmp_path]).groups)
    assert (same.p_value, same.note) == (1.0, "no pair differs")
    assert math.isnan(nearly.p_value)
    assert nearly.note == "too few pairs that differ: 1, at least 6 are needed"


def test_clients_of_different_partitions_are_no_pairs(make_run, tmp_path):
    for seed in (0, 1):
        make_run("FedAvg", seed, TEN, partition="one" if seed else "same")
        make_run("FedBABU", seed, TEN)
    collection = collect([tmp_path])
    (test,) = all_pairs(collection.groups)
    assert (test.pairs, test.seeds) == (10, 1)
    assert "different partitions" in test.note
    assert any("seed 1: different partitions" in warning for warning in collection.warnings)


def test_holm_by_hand_and_what_is_unknown_does_not_count():
    assert holm([0.01, math.nan, 0.04, 0.03])[::2] == [pytest.approx(0.03), pytest.approx(0.06)]
    assert math.isnan(holm([0.01, math.nan])[1])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_each_family_is_corrected_by_itself(make_run, tmp_path):
    rng = np.random.default_rng(1)
    for at, name in enumerate(("FedAvg", "FedBABU", "FedProx")):
        make_run(name, 0, rng.uniform(0.1 * at, 0.5 + 0.1 * at, 40))
    groups = collect([tmp_path]).groups
    against, pairs = against_baseline(groups, "FedBABU"), all_pairs(groups)
    assert [len(against), len(pairs)] == [2, 3]
    assert [test.p_holm for test in against] == holm([test.p_value for test in against])
    assert [test.p_holm for test in pairs] == holm([test.p_value for test in pairs])
