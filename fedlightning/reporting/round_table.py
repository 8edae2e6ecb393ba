"""A CSV file with one row per round, rewritten as little as possible and readable at any moment."""

from __future__ import annotations

import bisect
import csv
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedlightning.errors import ConfigError, DataError
from fedlightning.storage.csv_files import csv_text
from fedlightning.storage.files import os_errors_as_failures, write_atomically

__all__ = ["RoundTable"]


class RoundTable:
    """Metrics by round, kept in memory and in a CSV file whose first column is ``round``.

    What is recorded for one round merges into that round's row. Rounds mostly come in order, so
    :meth:`save` appends new rows, and writes the last one again if it changed; its cost does not
    grow with the number of rounds. The whole file is rewritten, atomically, only when a column
    joins, when rows go or earlier ones change, or when the last row would become shorter.

    The end is written by one system call and never cut first: a process killed at any moment leaves
    a file that reads. After a power failure the last line may be torn; it is then left out.

    Args:
        path: The file. If it exists, its rows are kept; a round recorded again then replaces the
            old row as a whole, because a resumed run trains that round again.

    Raises:
        DataError: The file exists and is not a table of rounds; the error names the line.
        EnvironmentFailure: The file exists and cannot be read.

    Example:
        >>> path = getfixture("tmp_path") / "metrics.csv"
        >>> table = RoundTable(path)
        >>> table.record(0, {"train/loss": 2.5})
        >>> table.record(0, {"global/acc": 0.25})
        >>> table.record(1, {"train/loss": 2.0})
        >>> table.save()
        >>> print(path.read_text(), end="")
        round,train/loss,global/acc
        0,2.5,0.25
        1,2.0,
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._columns: list[str] = []
        self._rows: dict[int, dict[str, str]] = {}
        self._rounds: list[int] = []  # the keys of _rows, ascending
        self._inherited: set[int] = set()
        self._first_changed: int | None = None  # the first round whose row is not in the file
        self._file: _Written | None = None
        if self.path.exists():
            self._load()

    @property
    def rounds(self) -> Sequence[int]:
        """The rounds that have a row, ascending."""
        return tuple(self._rounds)

    def row(self, round: int) -> dict[str, float]:  # noqa: A002
        """Return the metrics of one round."""
        return {name: float(cell) for name, cell in self._rows[round].items()}

    def record(self, round: int, metrics: Mapping[str, Any]) -> None:  # noqa: A002
        """Merge ``metrics`` into the row of ``round``; nothing is written yet.

        Args:
            round: Round index, from 0.
            metrics: Numbers, or tensors of one element, by name.

        Raises:
            ConfigError: A value is not a number.
        """
        cells = {name: _cell(name, value) for name, value in metrics.items()}
        if round in self._inherited:
            self._inherited.remove(round)
            self._rows[round] = {}
        elif round not in self._rows:
            bisect.insort(self._rounds, round)
            self._rows[round] = {}
        self._rows[round].update(cells)
        if self._first_changed is None or round < self._first_changed:
            self._first_changed = round
        known = set(self._columns)
        self._columns += [name for name in cells if name not in known]

    def truncate(self, round: int) -> None:  # noqa: A002
        """Remove the rows of ``round`` and of every later one, in the file too.

        What is recorded afterwards for an earlier round merges into its row.
        """
        self._inherited.clear()
        keep = bisect.bisect_left(self._rounds, round)
        if keep == len(self._rounds):
            return
        for gone in self._rounds[keep:]:
            del self._rows[gone]
        del self._rounds[keep:]
        self._write_all()

    def save(self) -> None:
        """Bring the file up to date.

        Raises:
            EnvironmentFailure: The file cannot be written; what it held before stays.
        """
        if self._first_changed is not None and not self._write_end(self._first_changed):
            self._write_all()

    def _write_end(self, changed: int) -> bool:
        """Append new rows, and write the last one again if it changed, where that is safe."""
        before = self._file
        if before is None or before.columns != self._columns or not self.path.is_file():
            return False
        if changed < before.last_round:
            return False
        start = before.last_row if changed == before.last_round else before.size
        first = bisect.bisect_left(self._rounds, changed)
        lines = [self._line(round_) for round_ in self._rounds[first:]]
        end = b"".join(lines)
        with os_errors_as_failures("write", self.path), self.path.open("r+b", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            if size != before.size or start + len(end) < size:
                return False
            file.seek(start)
            if file.write(end) != len(end):
                return False
        self._written(start, lines)
        return True

    def _write_all(self) -> None:
        lines = [csv_text([["round", *self._columns]]).encode(), *map(self._line, self._rounds)]
        write_atomically(self.path, b"".join(lines))
        self._written(0, lines)

    def _written(self, start: int, lines: Sequence[bytes]) -> None:
        """Remember the end of the file, after lines were written from a position on."""
        size = start + sum(map(len, lines))
        last_round, length = (self._rounds[-1], len(lines[-1])) if self._rounds else (-1, 0)
        self._file = _Written(list(self._columns), last_round, size - length, size)
        self._first_changed = None

    def _line(self, round_: int) -> bytes:
        row = self._rows[round_]
        return csv_text([[round_, *(row.get(name, "") for name in self._columns)]]).encode()

    def _load(self) -> None:
        with os_errors_as_failures("read", self.path):
            text = self.path.read_bytes().decode("utf-8", errors="replace")
        lines = text.split("\n")[:-1]
        header = next(csv.reader(lines), ["round"])
        if header[0] != "round":
            raise DataError(
                f"{self.path}:1: the first column is '{header[0]}', expected 'round'. "
                "Another program wrote this file; choose another version of the logger."
            )
        self._columns = header[1:]
        for number, line in enumerate(lines[1:], start=2):
            try:
                round_, cells = _parse(line, self._columns)
            except (ValueError, IndexError, csv.Error):
                if number == len(lines):
                    break  # torn
                raise DataError(
                    f"{self.path}:{number}: expected a round and {len(self._columns)} numbers, "
                    f"got {line!r}"
                ) from None
            self._rows[round_] = cells
        self._rounds = sorted(self._rows)
        self._inherited = set(self._rounds)


@dataclass(frozen=True)
class _Written:
    """What the file holds: its columns, its last round, where that row begins and ends."""

    columns: list[str]
    last_round: int
    last_row: int
    size: int


def _parse(line: str, columns: Sequence[str]) -> tuple[int, dict[str, str]]:
    [[first, *rest]] = csv.reader([line])
    cells = {name: cell for name, cell in zip(columns, rest, strict=True) if cell}
    for cell in cells.values():
        float(cell)
    return int(first), cells


def _cell(name: str, value: Any) -> str:
    number = value
    if hasattr(value, "item") and math.prod(value.shape) == 1:
        number = value.item()
    if isinstance(number, float):
        return repr(number)
    if isinstance(number, int):
        return str(int(number))
    raise ConfigError(f"metric '{name}' is {value!r}; metrics.csv holds single numbers")
