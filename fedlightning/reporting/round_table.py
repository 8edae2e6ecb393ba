"""A CSV file with one row per round, rewritten as little as possible and always readable."""

from __future__ import annotations

import bisect
import csv
import io
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedlightning.errors import ConfigError, DataError
from fedlightning.storage.files import os_errors_as_failures, write_atomically

__all__ = ["RoundTable"]


class RoundTable:
    """Metrics by round, kept in memory and in a CSV file whose first column is ``round``.

    Metrics recorded for one round merge into one row. Rounds mostly come in order, so :meth:`save`
    writes the changed rows over the end of the file, at a cost that does not grow with the number
    of rounds. The whole file is rewritten, and replaced atomically, only for a new column, for
    removed rows, or if the end would become shorter.

    The end is written by one system call and never truncated first, so a process killed at any
    moment leaves a readable file. After a power failure the last line may be torn; it is then
    ignored.

    Args:
        path: The file. Its rows are kept if it exists; a round recorded again then replaces the old
            row as a whole, because a resumed run repeats that round.

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
        self._dirty: set[int] = set()
        self._file = _Layout()
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
        cells = {name: _format_value(name, value) for name, value in metrics.items()}
        if round in self._inherited:
            self._inherited.remove(round)
            self._rows[round] = {}
        elif round not in self._rows:
            bisect.insort(self._rounds, round)
            self._rows[round] = {}
        self._rows[round].update(cells)
        self._dirty.add(round)
        known = set(self._columns)
        self._columns += [name for name in cells if name not in known]

    def truncate(self, round: int) -> None:  # noqa: A002
        """Remove the rows of ``round`` and of every later one, in the file too.

        What is then recorded for an earlier round joins its row.
        """
        self._inherited.clear()
        keep = bisect.bisect_left(self._rounds, round)
        if keep == len(self._rounds):
            return
        for gone in self._rounds[keep:]:
            del self._rows[gone]
        del self._rounds[keep:]
        self._dirty &= self._rows.keys()
        self._write_all()

    def save(self) -> None:
        """Bring the file up to date.

        Raises:
            EnvironmentFailure: The file cannot be written; its former content stays.
        """
        if self._dirty and not self._write_end():
            self._write_all()

    def _write_end(self) -> bool:
        """Write the changed rows over the end of the file, unless that could corrupt it."""
        layout = self._file
        if layout.columns != tuple(self._columns) or not self.path.is_file():
            return False
        # A new row is dirty as well, so the file agrees with memory on all rows before this one.
        first = bisect.bisect_left(self._rounds, min(self._dirty))
        start = layout.starts[first] if first < len(layout.starts) else layout.size
        lines = [self._line(round_) for round_ in self._rounds[first:]]
        end = b"".join(lines)
        with os_errors_as_failures("write", self.path), self.path.open("r+b", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            if size != layout.size or start + len(end) < size:
                return False
            file.seek(start)
            if file.write(end) != len(end):
                return False
        layout.replace_end(first, lines)
        self._dirty.clear()
        return True

    def _write_all(self) -> None:
        header = _encode(["round", *self._columns])
        lines = [self._line(round_) for round_ in self._rounds]
        write_atomically(self.path, header + b"".join(lines))
        self._file = _Layout(tuple(self._columns), len(header))
        self._file.replace_end(0, lines)
        self._dirty.clear()

    def _line(self, round_: int) -> bytes:
        row = self._rows[round_]
        return _encode([str(round_), *(row.get(name, "") for name in self._columns)])

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


class _Layout:
    """The position of each row in the file, in bytes."""

    def __init__(self, columns: tuple[str, ...] | None = None, size: int = 0) -> None:
        self.columns = columns
        self.size = size
        self.starts: list[int] = []

    def replace_end(self, first: int, lines: Iterable[bytes]) -> None:
        if first < len(self.starts):
            self.size = self.starts[first]
        del self.starts[first:]
        for line in lines:
            self.starts.append(self.size)
            self.size += len(line)


def _encode(cells: Sequence[str]) -> bytes:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(cells)
    return line.getvalue().encode()


def _parse(line: str, columns: Sequence[str]) -> tuple[int, dict[str, str]]:
    [[first, *rest]] = csv.reader([line])
    cells = {name: cell for name, cell in zip(columns, rest, strict=True) if cell}
    for cell in cells.values():
        float(cell)
    return int(first), cells


def _format_value(name: str, value: Any) -> str:
    number = value
    if hasattr(value, "item") and math.prod(value.shape) == 1:
        number = value.item()
    if isinstance(number, float):
        return repr(number)
    if isinstance(number, int):
        return str(int(number))
    raise ConfigError(f"metric '{name}' is {value!r}; metrics.csv holds single numbers")
