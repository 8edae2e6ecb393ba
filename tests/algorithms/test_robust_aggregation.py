"""Rules of aggregation against a few lines of plain Python, and against attackers."""

from __future__ import annotations

import itertools
import math
import statistics

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlightning.algorithms.aggregation import (
    Aggregator,
    CoordinateMedian,
    Krum,
    Mean,
    MultiKrum,
    NormClipping,
    TrimmedMean,
    WeightedMean,
)
from fedlightning.errors import ConfigError, FederationError

RULES = [
    Mean(),
    CoordinateMedian(),
    TrimmedMean(0.3),
    Krum(2),
    MultiKrum(2),
    MultiKrum(2, num_selected=3),
    NormClipping(1.5),
    NormClipping("median"),
]
ROBUST = RULES[1:]

rows = st.integers(1, 12).flatmap(
    lambda n: st.lists(
        st.lists(st.floats(-1e6, 1e6, width=32), min_size=3, max_size=3), min_size=n, max_size=n
    )
)


def state(row, **others):
    """A state of three coordinates: a weight of two and a bias of none."""
    values = torch.as_tensor(row, dtype=torch.float32)
    return {"w": values[:2].clone(), "b": values[2].clone(), **others}


def merge(rule: Aggregator, table, weights=None, reference=(0.0, 0.0, 0.0), sums="float64"):
    merging = rule.start(state(reference), {"w", "b"}, sums)
    for row, weight in zip(table, weights or [1] * len(table), strict=True):
        merging.push(state(row), weight)
    result = merging.result()
    return [*result["w"].tolist(), result["b"].item()]


def close(values):
    return pytest.approx(values, rel=1e-6, abs=1e-6)


def a_crowd(clients: int, seed: int = 0):
    """Honest clients near (1, 2, 3)."""
    return np.random.default_rng(seed).normal([1, 2, 3], 0.1, (clients, 3)).tolist()


# -- against plain Python --------------------------------------------------------------------------


@given(rows)
def test_the_median_is_that_of_each_coordinate(table):
    expected = [statistics.median(column) for column in zip(*table, strict=True)]
    assert merge(CoordinateMedian(), table) == close(expected)


@given(rows, st.sampled_from([0.0, 0.1, 0.25, 0.34, 0.49]))
def test_the_trimmed_mean_is_the_mean_of_what_is_left(table, fraction):
    cut = math.floor(fraction * len(table))
    expected = [
        statistics.fmean(sorted(column)[cut : len(column) - cut])
        for column in zip(*table, strict=True)
    ]
    assert merge(TrimmedMean(fraction), table) == close(expected)


def test_the_share_to_trim_is_the_number_as_it_was_written():
    assert math.floor(0.29 * 100) == 28
    assert TrimmedMean(0.29).cut(100) == 29


def scores(table, f):
    """Krum's scores, by the book."""
    everyone = range(len(table))
    distance = [[math.dist(table[i], table[j]) ** 2 for j in everyone] for i in everyone]
    return [
        sum(sorted(distance[i][j] for j in everyone if j != i)[: len(table) - f - 2])
        for i in everyone
    ]


@pytest.mark.parametrize(("clients", "f"), [(3, 0), (5, 1), (8, 2), (13, 5)])
@pytest.mark.parametrize("seed", range(5))
def test_krum_chooses_the_client_closest_to_its_neighbours(clients, f, seed):
    table = np.random.default_rng(seed).normal(size=(clients, 3)).astype("float32").tolist()
    by_score = np.argsort(scores(table, f), kind="stable")
    assert merge(Krum(f), table) == table[by_score[0]]
    for m in (1, clients - f):
        expected = np.mean([table[i] for i in by_score[:m]], axis=0)
        assert merge(MultiKrum(f, m), table) == close(expected.tolist())
    assert merge(MultiKrum(f), table) == merge(MultiKrum(f, clients - f), table)


def test_of_equal_scores_the_first_in_the_cohort_wins():
    square = [[0, 0, 0], [1, 1, 0], [0, 1, 0], [1, 0, 0]]
    assert len(set(scores(square, 0))) == 1
    for order in itertools.permutations(square):
        assert merge(Krum(0), order) == order[0]


def test_distances_are_over_all_of_a_large_tensor():
    rng = np.random.default_rng(3)
    table = rng.normal(size=(7, 40_000)).astype("float32")  # more than one block
    merging = Krum(2).start({"w": torch.zeros(200, 200)}, ["w"])
    for row in table:
        merging.push({"w": torch.from_numpy(row).reshape(200, 200)}, 1)
    best = int(np.argmin(scores(table.astype("float64").tolist(), 2)))
    assert torch.equal(merging.result()["w"].reshape(-1), torch.from_numpy(table[best]))


@given(rows, st.floats(0.01, 1e6), st.data())
def test_clipping_shortens_updates_and_keeps_weights(table, limit, data):
    weights = data.draw(st.lists(st.integers(1, 9), min_size=len(table), max_size=len(table)))
    start = np.array([0.5, -1.0, 2.0])
    clipped = [
        start + (np.array(row) - start) * min(1, limit / max(math.dist(row, start), 1e-300))
        for row in table
    ]
    expected = np.average(clipped, axis=0, weights=weights).tolist()
    got = merge(NormClipping(limit), table, weights, start)
    assert got == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_clipping_to_the_median_needs_no_limit():
    table = [[3, 0, 0], [0, 1, 0], [0, 0, 100]]  # norms 3, 1, 100
    assert merge(NormClipping("median"), table) == close([1, 1 / 3, 1])
    assert merge(NormClipping("median"), table, [1, 2, 5]) == close([3 / 8, 2 / 8, 15 / 8])


def test_updates_shorter_than_the_limit_give_the_mean_bit_for_bit():
    table, weights = a_crowd(9), list(range(1, 10))
    assert merge(NormClipping(1e3), table, weights) == merge(Mean(), table, weights)


def test_clipping_bounds_the_step_of_the_model():
    result = merge(NormClipping(2.0), [[1e30, 0, 0]] * 4, reference=(1, 1, 1))
    assert math.dist(result, (1, 1, 1)) == pytest.approx(2.0)


def test_the_mean_is_the_weighted_one():
    assert isinstance(Mean().start({}, []), WeightedMean)
    assert merge(Mean(), [[0, 0, 0], [4, 8, 12]], [3, 1]) == [1, 2, 3]


# -- what all rules have in common -----------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES, ids=repr)
@settings(max_examples=20)
@given(order=st.permutations(range(9)))
def test_the_order_of_the_cohort_does_not_matter(rule, order):
    table, weights = a_crowd(9), [1 + n for n in range(9)]
    shuffled = merge(rule, [table[n] for n in order], [weights[n] for n in order])
    assert shuffled == close(merge(rule, table, weights))


@pytest.mark.parametrize("rule", RULES[1:6], ids=repr)
def test_rules_that_ignore_weights_do(rule):
    table = a_crowd(9)
    assert merge(rule, table, [1e6, *[1] * 8]) == merge(rule, table)


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_equal_states_are_their_own_result(rule):
    assert merge(rule, [[0.1, 0.2, 0.3]] * 7) == close([0.1, 0.2, 0.3])


@pytest.mark.parametrize("size", [1e6, -1e6, 1e37])
@pytest.mark.parametrize("rule", ROBUST, ids=repr)
def test_two_attackers_of_nine_change_little_and_the_mean_a_lot(rule, size):
    table = a_crowd(9)
    table[1] = table[6] = [size] * 3
    honest = [table[n] for n in range(9) if n not in (1, 6)]
    # two of nine updates point the other way, clipped to the honest ones' norm of less than 4
    most = 2 / 9 * 2 * 4 if isinstance(rule, NormClipping) else 0.3
    assert math.dist(merge(rule, table), merge(rule, honest)) < most
    assert math.dist(merge(Mean(), table), merge(Mean(), honest)) > 1e5


@pytest.mark.parametrize("rule", RULES, ids=repr)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_refused(rule, bad):
    with pytest.raises(ValueError, match=r"^w holds a NaN or an infinity$"):
        merge(rule, [*a_crowd(7), [1.0, bad, 1.0]])


@pytest.mark.parametrize("rule", RULES, ids=repr)
@settings(max_examples=25)
@given(table=st.lists(
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=3, max_size=3),
    min_size=7, max_size=9,
))  # fmt: skip
def test_no_finite_state_makes_a_result_that_is_not(rule, table):
    assert all(map(math.isfinite, merge(rule, table)))


@pytest.mark.parametrize("rule", RULES, ids=repr)
@pytest.mark.parametrize("weight", [0, -1, float("nan"), float("inf")])
def test_a_bad_weight_is_refused(rule, weight):
    with pytest.raises(ValueError, match="weight"):
        rule.start(state([0, 0, 0]), ["w", "b"]).push(state([0, 0, 0]), weight)


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_other_keys_and_shapes_are_refused(rule):
    merging = rule.start({"w": torch.zeros(2)}, ["w"])
    merging.push({"w": torch.zeros(2)}, 1)
    with pytest.raises(ValueError, match="keys differ"):
        merging.push({"v": torch.zeros(2)}, 1)
    with pytest.raises(ValueError, match="shapes differ"):
        merging.push({"w": torch.zeros(1)}, 1)


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_nothing_has_no_result(rule):
    with pytest.raises(ValueError, match="of no states"):
        rule.start({"w": torch.zeros(2)}, ["w"]).result()


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_states_may_be_overwritten_and_the_global_one_is_left_alone(rule):
    reference, resident = state([0, 0, 0]), state([0, 0, 0])
    merging = rule.start(reference, ["w", "b"])
    for row in a_crowd(9):
        resident["w"].copy_(torch.tensor(row[:2]))
        resident["b"].fill_(row[2])
        merging.push(resident, 1)
    result = merging.result()
    for value in resident.values():
        value.fill_(-7.0)
    assert [*result["w"].tolist(), result["b"].item()] == close(merge(rule, a_crowd(9)))
    assert all(not value.any() for value in reference.values())


@pytest.mark.parametrize("rule", RULES, ids=repr)
@pytest.mark.parametrize("sums", ["float64", "float32"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_dtypes_stay_and_integers_are_left_out(rule, sums, dtype):
    values = {"w": torch.zeros(2, 3, dtype=dtype), "b": torch.zeros((), dtype=dtype)}
    reference = {**values, "empty": torch.zeros(0, 3), "n": torch.tensor(4)}
    merging = rule.start(reference, ["w", "b", "empty"], sums)
    for step in range(9):
        merging.push({key: value + step for key, value in reference.items()}, 1)
    result = merging.result()
    assert {key: (value.dtype, value.shape) for key, value in result.items()} == {
        key: (value.dtype, value.shape) for key, value in reference.items() if key != "n"
    }


def buffers(rule):
    """What becomes of a buffer that is large where the parameter is close to the others."""
    merging = rule.start({"w": torch.zeros(1), "var": torch.ones(1)}, ["w"])
    for w, var in ((1.0, 2.0), (1.1, 1e6), (0.8, 2.0), (1e6, 2.0), (1.25, 2.0)):
        merging.push({"w": torch.tensor([w]), "var": torch.tensor([var])}, 1)
    return merging.result()["var"].item()


def test_distances_and_norms_are_over_parameters_only():
    assert buffers(Krum(1)) == 1e6  # the buffer of the chosen client, which counted for nothing
    assert buffers(NormClipping(1.0)) == close((1e6 + 8) / 5)
    assert buffers(CoordinateMedian()) == 2.0


# -- settings --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: TrimmedMean(0.5), "trim_fraction must be < 0.5, got 0.5"),
        (lambda: TrimmedMean(-0.1), "trim_fraction must be >= 0, got -0.1"),
        (lambda: TrimmedMean(float("nan")), "trim_fraction must be < 0.5, got nan"),
        (lambda: Krum(-1), "num_byzantine must be an integer >= 0, got -1"),
        (lambda: Krum(1.5), "num_byzantine must be an integer >= 0, got 1.5"),
        (lambda: MultiKrum(1, 0), "num_selected must be an integer >= 1, or null"),
        (lambda: NormClipping(0.0), "max_norm must be a finite number > 0, or 'median', got 0.0"),
        (lambda: NormClipping(float("inf")), "max_norm must be a finite number > 0"),
        (lambda: NormClipping("mean"), "or 'median', got 'mean'"),
    ],
)
def test_values_out_of_range_are_refused(make, text):
    with pytest.raises(ConfigError) as refused:
        make()
    assert str(refused.value).startswith("federation.aggregator")
    assert text in str(refused.value)


@pytest.mark.parametrize(
    ("rule", "cohort", "text"),
    [
        (Krum(3), 8, "Krum needs n >= 2f + 3 = 9 clients a round, federation.cohort_size gives 8; "
                     "raise the cohort, or lower num_byzantine from 3 to 2."),
        (MultiKrum(0), 2, "MultiKrum needs n >= 2f + 3 = 3 clients a round, "
                          "federation.cohort_size gives 2; raise the cohort."),
        (MultiKrum(4, 20), 20, "MultiKrum cannot have num_selected 20 > n - f = 16, "
                               "federation.cohort_size gives 20; "
                               "lower num_selected, or leave it out to take n - f."),
    ],
)  # fmt: skip
def test_a_cohort_that_is_too_small_is_refused(rule, cohort, text):
    with pytest.raises(ConfigError) as refused:
        rule.check(cohort)
    assert str(refused.value) == f"federation.aggregator: {text}"


@pytest.mark.parametrize(
    ("rule", "enough"), [(Krum(2), 7), (MultiKrum(2), 7), (MultiKrum(2, 8), 10)], ids=repr
)
def test_conditions_hold_from_one_client_on(rule, enough):
    rule.check(enough)
    merge(rule, a_crowd(enough))
    with pytest.raises(ConfigError):
        rule.check(enough - 1)
    with pytest.raises(FederationError, match=rf"^federation.aggregator: {rule.name} .* = \d"):
        merge(rule, a_crowd(enough - 1))


def test_a_round_with_too_few_updates_names_rule_and_numbers():
    with pytest.raises(FederationError) as refused:
        merge(Krum(1), a_crowd(4))
    assert str(refused.value) == (
        "federation.aggregator: Krum needs n >= 2f + 3 = 5 clients a round, only 4 updates came "
        "in; raise the cohort, or lower num_byzantine from 1 to 0."
    )


@pytest.mark.parametrize("rule", [Mean(), CoordinateMedian(), TrimmedMean(), NormClipping(1.0)])
def test_the_other_rules_work_with_one_client(rule):
    rule.check(1)
    assert merge(rule, [[0.25, 0.5, 0.75]]) == [0.25, 0.5, 0.75]


def test_rules_are_their_settings():
    assert Krum(2) == Krum(num_byzantine=2) != Krum(3)
    assert hash(MultiKrum(2)) == hash(MultiKrum(2, None))
    assert Mean() != CoordinateMedian()
    assert repr(MultiKrum(2, 3)) == "MultiKrum(num_byzantine=2, num_selected=3)"
    assert repr(TrimmedMean()) == "TrimmedMean(trim_fraction=0.1)"
    assert eval(repr(NormClipping("median"))) == NormClipping("median")
