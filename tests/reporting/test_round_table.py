import csv
import math
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from fedlightning.errors import ConfigError, DataError
from fedlightning.reporting import round_table
from fedlightning.reporting.round_table import RoundTable


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.csv"


@pytest.fixture
def rewrites(monkeypatch):
    """Counts how often the whole file is written."""
    calls = []
    original = round_table.write_atomically

    def counting(path, content):
        calls.append(len(content))
        original(path, content)

    monkeypatch.setattr(round_table, "write_atomically", counting)
    return calls


def test_metrics_of_one_round_merge_into_one_row(path):
    table = RoundTable(path)
    table.record(0, {"loss": 2.0})
    table.save()
    table.record(0, {"acc": 0.5})
    table.save()
    assert path.read_text() == "round,loss,acc\n0,2.0,0.5\n"


def test_a_metric_that_was_not_logged_is_an_empty_cell(path):
    table = RoundTable(path)
    table.record(0, {"loss": 2.0, "acc": 0.5})
    table.record(1, {"loss": 1.5})
    table.save()
    assert path.read_text() == "round,loss,acc\n0,2.0,0.5\n1,1.5,\n"


def test_a_column_that_joins_later_keeps_the_old_rows(path):
    table = RoundTable(path)
    for round_ in range(3):
        table.record(round_, {"loss": float(round_)})
        table.save()
    table.record(3, {"acc": 0.25})
    table.save()
    assert path.read_text() == "round,loss,acc\n0,0.0,\n1,1.0,\n2,2.0,\n3,,0.25\n"


def test_rounds_that_come_out_of_order_are_written_in_order(path):
    table = RoundTable(path)
    for round_ in (2, 0, 1):
        table.record(round_, {"loss": float(round_)})
        table.save()
    assert path.read_text() == "round,loss\n0,0.0\n1,1.0\n2,2.0\n"


def test_a_value_that_becomes_shorter_leaves_no_rest_of_the_longer_one(path):
    table = RoundTable(path)
    table.record(0, {"loss": 0.123456789})
    table.save()
    table.record(0, {"loss": 1.0})
    table.save()
    assert path.read_text() == "round,loss\n0,1.0\n"


def test_the_whole_file_is_written_only_when_a_column_joins(path, rewrites):
    table = RoundTable(path)
    for round_ in range(200):
        table.record(round_, {"loss": 1 / (round_ + 1)})
        table.save()
        table.record(round_, {"acc": round_ / 200})
        table.save()
    assert len(rewrites) == 2
    rows = _rows(path)
    assert [int(row["round"]) for row in rows] == list(range(200))
    assert [float(row["acc"]) for row in rows] == [r / 200 for r in range(200)]


def test_a_file_that_somebody_deleted_is_written_anew(path):
    table = RoundTable(path)
    table.record(0, {"loss": 2.0})
    table.save()
    path.unlink()
    table.record(1, {"loss": 1.0})
    table.save()
    assert path.read_text() == "round,loss\n0,2.0\n1,1.0\n"


@pytest.mark.parametrize(
    "value",
    [1 / 3, 1e-300, math.inf, 2**60, torch.tensor(0.1), np.float32(0.1), np.int64(7), True],
)
def test_a_cell_gives_back_the_number(path, value):
    table = RoundTable(path)
    table.record(0, {"x": value})
    table.save()
    assert float(_rows(path)[0]["x"]) == float(value)
    assert table.row(0) == {"x": float(value)}


def test_nan_is_written_as_nan_and_not_as_an_empty_cell(path):
    table = RoundTable(path)
    table.record(0, {"x": math.nan})
    table.save()
    assert path.read_text() == "round,x\n0,nan\n"


@pytest.mark.parametrize("value", ["high", None, torch.zeros(2), [1.0]])
def test_what_is_no_number_is_refused_by_name(path, value):
    with pytest.raises(ConfigError, match=r"metric 'x' is .*single numbers"):
        RoundTable(path).record(0, {"x": value})


def test_a_name_with_a_comma_comes_back(path):
    table = RoundTable(path)
    table.record(0, {"a,b": 1.0})
    table.save()
    assert _rows(path) == [{"round": "0", "a,b": "1.0"}]
    assert RoundTable(path).row(0) == {"a,b": 1.0}


def test_an_existing_file_keeps_its_rows_and_the_spelling_of_its_numbers(path):
    path.write_text("round,loss,acc\n0,3,\n1,2.50,0.1\n")
    table = RoundTable(path)
    table.record(2, {"loss": 1.0})
    table.save()
    assert path.read_text() == "round,loss,acc\n0,3,\n1,2.50,0.1\n2,1.0,\n"


def test_a_round_done_again_replaces_the_old_row_as_a_whole(path):
    path.write_text("round,loss,acc\n0,3.0,0.1\n1,2.0,0.2\n")
    table = RoundTable(path)
    table.record(1, {"loss": 1.75})
    table.record(1, {"time": 5.0})
    table.save()
    assert path.read_text() == "round,loss,acc,time\n0,3.0,0.1,\n1,1.75,,5.0\n"


def test_truncate_removes_the_round_and_all_later_ones(path):
    path.write_text("round,loss\n0,3.0\n1,2.0\n2,1.0\n")
    table = RoundTable(path)
    table.truncate(1)
    assert path.read_text() == "round,loss\n0,3.0\n"
    table.record(1, {"loss": 2.5})
    table.save()
    assert path.read_text() == "round,loss\n0,3.0\n1,2.5\n"


def test_a_table_that_has_lost_all_rows_keeps_its_header(path):
    path.write_text("round,loss\n0,3.0\n1,2.0\n")
    table = RoundTable(path)
    table.truncate(0)
    assert path.read_text() == "round,loss\n"
    table.record(0, {"loss": 2.5})
    table.save()
    assert path.read_text() == "round,loss\n0,2.5\n"


def test_an_earlier_round_may_change(path):
    table = RoundTable(path)
    for round_ in range(3):
        table.record(round_, {"loss": float(round_)})
        table.save()
    table.record(1, {"loss": 1.25})
    table.record(3, {"loss": 3.0})
    table.save()
    assert path.read_text() == "round,loss\n0,0.0\n1,1.25\n2,2.0\n3,3.0\n"


def test_truncate_past_the_end_writes_nothing(path, rewrites):
    path.write_text("round,loss\n0,3.0\n")
    RoundTable(path).truncate(1)
    assert rewrites == []


@pytest.mark.parametrize("torn", ["2,1", "2,1.0", "2,1.0,x\n", "2\n", "\0\0\0\n"])
def test_a_torn_last_line_is_left_out(path, torn):
    path.write_text("round,loss\n0,3.0\n1,2.0\n" + torn)
    table = RoundTable(path)
    assert table.rounds == (0, 1)
    table.record(2, {"loss": 1.5})
    table.save()
    assert path.read_text() == "round,loss\n0,3.0\n1,2.0\n2,1.5\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch,loss,step\n0,1.0,5\n", r"metrics\.csv:1: the first column is 'epoch'"),
        ("round,loss\n0,high\n1,2.0\n", r"metrics\.csv:2: expected a round and 1 numbers"),
        ("round,loss\n0,1.0,2.0\n1,2.0\n", r"metrics\.csv:2: expected a round and 1 numbers"),
    ],
)
def test_a_file_of_something_else_is_refused_with_its_line(path, text, message):
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        RoundTable(path)


def test_an_empty_file_is_an_empty_table(path):
    path.write_bytes(b"")
    assert RoundTable(path).rounds == ()


def test_a_process_killed_while_writing_leaves_a_file_that_reads(path):
    endless = (
        "import itertools, sys; from fedlightning.reporting.round_table import RoundTable\n"
        "table = RoundTable(sys.argv[1])\n"
        "for step in itertools.count():\n"
        "    table.record(step // 2, {('loss', 'acc')[step % 2]: step / 7}); table.save()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", endless, str(path)])
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and len(_rows(path) if path.exists() else []) < 50:
        time.sleep(0.01)
    process.kill()
    process.wait()
    rows = _rows(path)
    assert len(rows) >= 50
    assert [int(row["round"]) for row in rows] == list(range(len(rows)))
    assert all(float(row["acc"]) == (2 * r + 1) / 7 for r, row in enumerate(rows[:-1]))


def _rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
