import math
from fractions import Fraction

import numpy as np
import pytest

from fedlightning.core.statistics import Spread
from fedlightning.errors import DataError, EnvironmentFailure
from fedlightning.reporting.client_records import ClientRecord, read_clients_csv, write_clients_csv

HEADER = "client_id,num_train,num_test,acc_before,acc_after,loss_before,loss_after"


def test_spread_of_four_numbers_by_hand():
    spread = Spread.of([0.0, 0.2, 0.4, 1.0])
    assert spread.mean == pytest.approx(0.4)
    assert spread.std == pytest.approx(math.sqrt((0.16 + 0.04 + 0.0 + 0.36) / 4))
    assert (spread.min, spread.max) == (0.0, 1.0)
    assert spread.p10 == pytest.approx(0.06)
    assert (spread.count, spread.missing) == (4, 0)


def test_the_ninetieth_percentile_by_hand():
    assert Spread.of([0.0, 0.2, 0.4, 1.0]).p90 == pytest.approx(0.4 + 0.7 * 0.6)  # place 0.9 * 3


@pytest.mark.parametrize(
    ("count", "worst"), [(1, 1), (9, 1), (10, 1), (19, 1), (20, 2), (29, 2), (100, 10)]
)
def test_the_worst_decile_is_the_mean_of_the_worst_tenth_of_at_least_one(count, worst):
    values = [7 * k % 101 / 101 for k in range(count)]  # all different, in no order
    expected = sum(sorted(values)[:worst]) / worst
    assert Spread.of(values).worst_decile == pytest.approx(expected)


@pytest.mark.parametrize(
    ("values", "index"),
    [
        ([0.25, 0.25, 0.25], Fraction(1)),  # all alike
        ([0.0, 0.0, 0.0, 1.0], Fraction(1, 4)),  # one has it all: 1/n
        ([0.0, 0.5, 0.5], Fraction(2, 3)),  # k of n have the same, the others nothing: k/n
        ([0.2, 0.4, 0.6], Fraction(12 * 12, 3 * 56)),
    ],
)
def test_jains_index_by_hand(values, index):
    assert Spread.of(values).jain == pytest.approx(float(index))
    assert Spread.of([10 * value for value in values]).jain == pytest.approx(float(index))


def test_jains_index_of_zeros_is_undefined():
    assert math.isnan(Spread.of([0.0, 0.0]).jain)


def test_spread_leaves_nan_out_and_counts_it():
    assert Spread.of([math.nan, 0.5, math.nan]) == Spread(
        0.5, 0.0, 0.5, 0.5, 0.5, 1, 2, p90=0.5, worst_decile=0.5, jain=1.0
    )


def test_spread_of_nothing_is_nan_without_a_warning():
    spread = Spread.of([math.nan])
    assert (spread.count, spread.missing) == (0, 1)
    assert math.isnan(spread.mean)
    assert math.isnan(spread.max)


def test_spread_of_an_infinite_loss_warns_of_nothing():
    assert Spread.of([1.0, math.inf]).mean == math.inf


def test_spread_takes_a_generator():
    assert Spread.of(x / 2 for x in (1, 3)).mean == 1.0


def test_a_client_without_test_data_is_untested():
    assert not ClientRecord(0, 5, 0, math.nan, math.nan, math.nan, math.nan).tested
    assert ClientRecord(0, 5, 5, 0.0, 0.0, math.nan, math.nan).tested


def test_the_file_has_exactly_the_promised_header_and_rows_by_client_id(tmp_path):
    path = tmp_path / "clients.csv"
    write_clients_csv(
        path,
        [
            ClientRecord(7, 3, 0, math.nan, math.nan, math.nan, math.nan),
            ClientRecord(2, 80, 20, 0.5, 0.75, 1.25, 0.5),
        ],
    )
    assert path.read_text() == f"{HEADER}\n2,80,20,0.5,0.75,1.25,0.5\n7,3,0,nan,nan,nan,nan\n"


def test_floats_come_back_as_the_same_floats(tmp_path):
    path = tmp_path / "clients.csv"
    single = np.float32(0.1)
    record = ClientRecord(0, 1, 3, 1 / 3, single, 0.1 + 0.2, 1e-17)  # type: ignore[arg-type]
    write_clients_csv(path, [record])
    [back] = read_clients_csv(path)
    assert (back.acc_before, back.loss_before, back.loss_after) == (1 / 3, 0.1 + 0.2, 1e-17)
    assert back.acc_after == float(single)
    assert isinstance(back.num_test, int)


def test_no_clients_are_a_header_alone(tmp_path):
    write_clients_csv(tmp_path / "clients.csv", [])
    assert (tmp_path / "clients.csv").read_text() == HEADER + "\n"
    assert read_clients_csv(tmp_path / "clients.csv") == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,acc\n1,0.5\n", r"clients\.csv:1: expected header 'client_id,num_train"),
        ("", r"clients\.csv:1: expected header"),
        (HEADER + "\n1,2,3\n", r"clients\.csv:2: expected 7 cells, got 3"),
        (HEADER + "\n1,2,3,x,0,0,0\n", r"clients\.csv:2: could not convert .* 'x'"),
    ],
)
def test_a_file_of_something_else_is_refused_with_its_line(tmp_path, text, message):
    path = tmp_path / "clients.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_clients_csv(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(EnvironmentFailure, match=r"cannot read .*clients\.csv: No such file"):
        read_clients_csv(tmp_path / "clients.csv")


def test_other_metrics_have_columns_after_those_of_every_table(tmp_path):
    records = [
        ClientRecord(1, 5, 4, 0.5, 0.75, 1.0, 0.5, {"f1_before": 0.25, "f1_after": 0.5}),
        ClientRecord(0, 5, 4, 0.5, 0.75, 1.0, 0.5),
    ]
    write_clients_csv(tmp_path / "clients.csv", records)
    assert (tmp_path / "clients.csv").read_text() == (
        "client_id,num_train,num_test,acc_before,acc_after,loss_before,loss_after,f1_before,f1_after\n"
        "0,5,4,0.5,0.75,1.0,0.5,nan,nan\n"
        "1,5,4,0.5,0.75,1.0,0.5,0.25,0.5\n"
    )
    assert read_clients_csv(tmp_path / "clients.csv")[1] == records[0]
