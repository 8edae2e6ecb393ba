"""One record per client: how well the model serves it before and after personalization."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from fedlightning.core.client_names import NAME_COLUMN
from fedlightning.core.main_metric import MainMetric
from fedlightning.errors import DataError
from fedlightning.storage.csv_files import write_csv
from fedlightning.storage.files import os_errors_as_failures

__all__ = [
    "ClientRecord",
    "columns_of",
    "main_metric_of",
    "read_clients_csv",
    "write_clients_csv",
]


@dataclass(frozen=True)
class ClientRecord:
    """One client before and after personalization.

    Args:
        client_id: The client.
        num_train: Examples that the client trains on.
        num_test: Examples that the accuracies and losses are measured on.
        acc_before: Accuracy of the global model, in 0..1; nan without test data.
        acc_after: Accuracy of the personalized model, in 0..1; nan without test data.
        loss_before: Mean loss of the global model; nan without test data.
        loss_after: Mean loss of the personalized model; nan without test data.
        others: The module's other metrics, by the names of their columns: ``mae_before``,
            ``mae_after``, and so on.
        name: The client's name, for the last column; empty if it has none.

    Example:
        >>> ClientRecord(3, 80, 20, 0.5, 0.75, 1.2, 0.6).tested
        True
    """

    client_id: int
    num_train: int
    num_test: int
    acc_before: float
    acc_after: float
    loss_before: float
    loss_after: float
    others: Mapping[str, float] = field(default_factory=dict)
    name: str = ""

    @property
    def tested(self) -> bool:
        """Whether both accuracies are defined."""
        return self.has("acc")

    def has(self, metric: str) -> bool:
        """Whether a metric is defined before and after."""
        return not (math.isnan(self.before(metric)) or math.isnan(self.after(metric)))

    def before(self, metric: str) -> float:
        """Return a metric before personalization, by its short name; nan if it is not known."""
        return self._value(f"{metric}_before")

    def after(self, metric: str) -> float:
        """Return a metric after personalization, by its short name; nan if it is not known."""
        return self._value(f"{metric}_after")

    def _value(self, column: str) -> float:
        own = {"acc_before", "acc_after", "loss_before", "loss_after"}
        if column in own:
            return float(getattr(self, column))
        return float(self.others.get(column, math.nan))

    def cells(self, columns: Iterable[str]) -> list[int | float | str]:
        """Return the values of some columns; nan for a metric that the client does not have."""
        values = {**vars(self), **self.others}
        return [
            self.name
            if name == NAME_COLUMN
            else int(values[name])
            if name in _INTEGERS
            else float(values.get(name, math.nan))
            for name in columns
        ]


_COLUMNS = [each.name for each in fields(ClientRecord) if each.name not in ("others", "name")]
_INTEGERS = {"client_id", "num_train", "num_test"}


def columns_of(records: Iterable[ClientRecord]) -> list[str]:
    """Return the columns of a table of clients: those of all tables, then the module's metrics."""
    every = list(records)
    others = dict.fromkeys(name for record in every for name in record.others)
    named = [NAME_COLUMN] if any(record.name for record in every) else []
    return [*_COLUMNS, *others, *named]


def main_metric_of(
    records: Iterable[ClientRecord], given: str | None = None, mode: str | None = None
) -> MainMetric:
    """Return the metric by which some clients are compared.

    Args:
        records: The clients.
        given: ``federation.main_metric``; ``None`` means accuracy, or the first that they have.
        mode: ``federation.main_metric_mode``.

    Raises:
        ConfigError: What is given is not measured.

    Example:
        >>> nan = math.nan
        >>> main_metric_of([ClientRecord(0, 8, 2, nan, nan, 1.0, 0.5, {"mae_after": 3.0})])
        MainMetric(name='mae', mode='min')
    """
    every = list(records)
    names = [name for name in ("acc", "loss") if any(record.has(name) for record in every)]
    names += [
        column.removesuffix("_after")
        for record in every
        for column in record.others
        if column.endswith("_after") and not math.isnan(record.others[column])
    ]
    return MainMetric.chosen(names, given, mode)


def write_clients_csv(path: str | os.PathLike[str], records: Iterable[ClientRecord]) -> None:
    """Write one row per client, ordered by client id; a reader never sees half a file.

    Floats are written with enough digits to read back the same float, undefined values as ``nan``.

    Args:
        path: The file, by convention ``clients.csv`` in the run folder.
        records: The clients, in any order.

    Raises:
        EnvironmentFailure: The file cannot be written.

    Example:
        >>> path = getfixture("tmp_path") / "clients.csv"
        >>> write_clients_csv(path, [ClientRecord(0, 80, 20, 0.5, 0.75, 1.25, 0.5)])
        >>> print(path.read_text(), end="")
        client_id,num_train,num_test,acc_before,acc_after,loss_before,loss_after
        0,80,20,0.5,0.75,1.25,0.5
        >>> read_clients_csv(path)[0].acc_after
        0.75
    """
    ordered = sorted(records, key=lambda record: record.client_id)
    columns = columns_of(ordered)
    write_csv(path, columns, (record.cells(columns) for record in ordered))


def read_clients_csv(path: str | os.PathLike[str]) -> list[ClientRecord]:
    """Read a table that :func:`write_clients_csv` has written.

    Args:
        path: The file.

    Returns:
        One record per row, in the order of the file.

    Raises:
        EnvironmentFailure: The file cannot be read.
        DataError: The header differs, or a row does not fit it; the error names the line.
    """
    with os_errors_as_failures("read", path):
        text = Path(path).read_text(encoding="utf-8", errors="replace")
    rows = csv.reader(io.StringIO(text, newline=""))
    header = next(rows, [])
    if header[: len(_COLUMNS)] != _COLUMNS:
        raise DataError(f"{path}:1: expected header '{','.join(_COLUMNS)}', got {header}")
    return [_record(path, rows.line_num, header, row) for row in rows]


def _record(
    path: str | os.PathLike[str], line: int, header: list[str], row: list[str]
) -> ClientRecord:
    if len(row) != len(header):
        raise DataError(f"{path}:{line}: expected {len(header)} cells, got {len(row)}")
    try:
        cells = zip(header, row, strict=True)
        texts = dict(cells)
        called = texts.pop(NAME_COLUMN, "")
        numbers = {n: int(cell) if n in _INTEGERS else float(cell) for n, cell in texts.items()}
    except ValueError as error:
        raise DataError(f"{path}:{line}: {error}") from None
    own: dict[str, Any] = {name: numbers.pop(name) for name in _COLUMNS}
    return ClientRecord(**own, others=numbers, name=called)
