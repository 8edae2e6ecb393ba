"""One record a client: how well the model serves it before and after personalization."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import numpy as np

from fedlightning.errors import DataError
from fedlightning.storage.files import teaching_os_errors, write_atomically

__all__ = ["ClientRecord", "Spread", "read_clients_csv", "write_clients_csv"]


@dataclass(frozen=True)
class ClientRecord:
    """What personalization did for one client.

    Args:
        client_id: The client.
        num_train: Examples that the client trains on.
        num_test: Examples that the accuracies and losses are measured on.
        acc_before: Accuracy of the global model, in 0..1; nan without test data.
        acc_after: Accuracy of the personalized model, in 0..1; nan without test data.
        loss_before: Mean loss of the global model; nan without test data.
        loss_after: Mean loss of the personalized model; nan without test data.

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

    @property
    def tested(self) -> bool:
        """Whether both accuracies are known, so that the client counts in statistics."""
        return not (math.isnan(self.acc_before) or math.isnan(self.acc_after))


@dataclass(frozen=True)
class Spread:
    """How a number is spread over clients; a mean alone hides who is served badly.

    Args:
        mean: Mean over the counted clients; nan when there are none, like all others.
        std: Population standard deviation (``ddof=0``), as federated papers report it.
        min: The worst client.
        p10: The tenth percentile, linearly interpolated.
        max: The best client.
        count: Clients counted.
        missing: Clients left out because their value is nan.
        p90: The ninetieth percentile, linearly interpolated.
        worst_decile: Mean of the worst tenth of the clients, rounded down, at least one.
        jain: Jain's index of fairness, ``(sum x)^2 / (n sum x^2)``: 1 if all are served equally
            (with nothing, too), 1/n if one client has it all.

    Source:
        Jain, Chiu, Hawe. A Quantitative Measure of Fairness and Discrimination for Resource
        Allocation in Shared Computer Systems. DEC Research Report TR-301, 1984.
        https://arxiv.org/abs/cs/9809099
    """

    mean: float
    std: float
    min: float
    p10: float
    max: float
    count: int
    missing: int = 0
    p90: float = math.nan
    worst_decile: float = math.nan
    jain: float = math.nan

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Return the spread of ``values``, with nan left out and counted as missing.

        Example:
            >>> spread = Spread.of([0.2, 0.4, 0.6, float("nan")])
            >>> round(spread.mean, 6), round(spread.p10, 6), spread.count, spread.missing
            (0.4, 0.24, 3, 1)
            >>> Spread.of([]).count
            0
        """
        given = np.fromiter((float(value) for value in values), dtype=np.float64)
        known = given[~np.isnan(given)]
        missing = given.size - known.size
        if known.size == 0:
            return cls(math.nan, math.nan, math.nan, math.nan, math.nan, 0, missing)
        ordered = np.sort(known)
        # A diverged client has an infinite loss; the standard deviation is then nan, silently.
        with np.errstate(invalid="ignore"):
            return cls(
                mean=float(known.mean()),
                std=float(known.std()),
                min=float(ordered[0]),
                p10=float(np.percentile(known, 10)),
                max=float(ordered[-1]),
                count=known.size,
                missing=missing,
                p90=float(np.percentile(known, 90)),
                worst_decile=float(ordered[: max(known.size // 10, 1)].mean()),
                jain=_jain(known),
            )


def _jain(values: np.ndarray) -> float:
    """Return Jain's index of fairness of at least one number."""
    squares = float((values**2).sum())
    return float(values.sum()) ** 2 / (values.size * squares) if squares else 1.0


_COLUMNS = [field.name for field in fields(ClientRecord)]
_INTEGERS = {"client_id", "num_train", "num_test"}


def write_clients_csv(path: str | os.PathLike[str], records: Iterable[ClientRecord]) -> None:
    """Write one row a client, ordered by client id; a reader never sees half a file.

    Floats are written with as many digits as bring back the same float; unknown values as ``nan``.

    Args:
        path: The file, by custom ``clients.csv`` in the folder of the run.
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
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    writer.writerows(_row(record) for record in sorted(records, key=lambda r: r.client_id))
    write_atomically(path, text.getvalue().encode())


def read_clients_csv(path: str | os.PathLike[str]) -> list[ClientRecord]:
    """Read what :func:`write_clients_csv` wrote.

    Args:
        path: The file.

    Returns:
        One record a row, in the order of the file.

    Raises:
        EnvironmentFailure: The file cannot be read.
        DataError: The header is another one, or a row does not fit it; the error names the line.
    """
    with teaching_os_errors("read", path):
        text = Path(path).read_text(encoding="utf-8", errors="replace")
    rows = csv.reader(text.splitlines())
    header = next(rows, [])
    if header != _COLUMNS:
        raise DataError(f"{path}:1: expected header '{','.join(_COLUMNS)}', got {header}")
    return [_record(path, rows.line_num, row) for row in rows]


def _row(record: ClientRecord) -> list[int | float]:
    # A NumPy float32 would be written with the few digits that single precision needs.
    cells = zip(_COLUMNS, astuple(record), strict=True)
    return [int(cell) if name in _INTEGERS else float(cell) for name, cell in cells]


def _record(path: str | os.PathLike[str], line: int, row: list[str]) -> ClientRecord:
    if len(row) != len(_COLUMNS):
        raise DataError(f"{path}:{line}: expected {len(_COLUMNS)} cells, got {len(row)}")
    try:
        cells = zip(_COLUMNS, row, strict=True)
        numbers = [int(cell) if name in _INTEGERS else float(cell) for name, cell in cells]
    except ValueError as error:
        raise DataError(f"{path}:{line}: {error}") from None
    return ClientRecord(*numbers)  # type: ignore[arg-type]
