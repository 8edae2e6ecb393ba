"""Of a table that a crash has cut off anywhere, whole lines are read."""

from __future__ import annotations

import numpy as np
import pytest

from fedlightning.results.frames import read_columns
from fedlightning.storage.csv_files import read_csv
from fedlightning.studies.run_reader import read_table
from fedlightning.studies.run_state import rounds_done

HEADER = "round,val/acc"
LINES = ["9,0.5", "10,0.1234", "11,", "12,nan", "128,0.75"]
TEXT = "".join(f"{line}\n" for line in [HEADER, *LINES])


@pytest.mark.parametrize("length", range(len(HEADER) + 1, len(TEXT) + 1))
def test_a_table_cut_off_anywhere_gives_its_whole_lines(length, tmp_path):
    folder = tmp_path / "lightning_logs" / "version_0"
    folder.mkdir(parents=True)
    path = folder / "rounds.csv"
    path.write_text(TEXT[:length])
    whole, end = [], len(HEADER) + 1
    for line in LINES:
        end += len(line) + 1
        if end <= length:
            whole.append(line.split(","))
    assert read_csv(path) == (["round", "val/acc"], whole)
    values = [float(cell or "nan") for _, cell in whole]
    numbers, columns = read_table(path)
    assert numbers.tolist() == [float(number) for number, _ in whole]
    assert np.array_equal(columns["val/acc"], values, equal_nan=True)
    assert np.array_equal(read_columns(path)["val/acc"], values, equal_nan=True)
    assert rounds_done(tmp_path) == (int(whole[-1][0]) + 1 if whole else 0)
