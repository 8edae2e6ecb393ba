"""Tables as CSV files: UTF-8, a line feed per row, and numbers that read back as they were."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

from fedlightning.storage.files import write_atomically

__all__ = ["csv_text", "read_csv", "write_csv"]


def write_csv(
    path: str | os.PathLike[str], header: Iterable[str], rows: Iterable[Iterable[Any]]
) -> None:
    """Write a table; a reader finds the old file or the new one, never half of either.

    Args:
        path: The file.
        header: The names of the columns.
        rows: The cells of each row.

    Raises:
        EnvironmentFailure: The file cannot be written.
    """
    write_atomically(path, csv_text(chain([header], rows)).encode())


def read_csv(path: Path) -> tuple[list[str], list[list[str]]]:
    r"""Return header and rows of a table, which may be one that is being written.

    What a crash has torn is left out: a last line without its line feed, whose last number may lack
    digits, and a row with another number of cells than the header.

    Raises:
        OSError: The file cannot be read.

    Example:
        >>> path = getfixture("tmp_path") / "rounds.csv"
        >>> _ = path.write_text("round,loss\n0,0.5\n1,0.1")  # of 0.1234
        >>> read_csv(path)
        (['round', 'loss'], [['0', '0.5']])
    """
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        text = file.read()
    rows = list(csv.reader(io.StringIO(text[: text.rfind("\n") + 1], newline="")))
    header = rows[0] if rows else []
    return header, [row for row in rows[1:] if len(row) == len(header)]


def csv_text(rows: Iterable[Iterable[Any]]) -> str:
    """Return the text of a table.

    Floats have as many digits as bring back the same float; NumPy's are converted first, because a
    float32 would be written with the few digits that single precision needs.

    Example:
        >>> import numpy as np
        >>> rows = [["a,b", np.float32(0.1)], ["", float("nan")]]
        >>> print(csv_text([["name", "loss"], *rows]), end="")
        name,loss
        "a,b",0.10000000149011612
        ,nan
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows(map(_plain, row) for row in rows)
    return text.getvalue()


def _plain(cell: Any) -> Any:
    return cell.item() if hasattr(cell, "item") else cell
