"""One record per examined client: how the global model would differ without it."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fedlightning.core.client_names import NAME_COLUMN
from fedlightning.errors import DataError
from fedlightning.storage.csv_files import write_csv
from fedlightning.storage.files import os_errors_as_failures

__all__ = ["InfluenceRecord", "ranked", "read_influence_csv", "write_influence_csv"]

_COLUMNS = ("rank", "client_id", "num_train", "rounds", "parameters", "dropped_layers")
_METRIC = "influence/"


@dataclass(frozen=True)
class InfluenceRecord:
    """One client's estimated influence on the final global model.

    Args:
        client_id: The client.
        num_train: Examples that it trains on.
        rounds: Rounds in which its update was merged.
        parameters: Length of the estimated difference between the parameters without it and with
            it.
        dropped_layers: Number of layers whose propagated part was cut off.
        metrics: The estimated change of each metric on test data, had the client never taken part.
            With a loss, a negative number is a client whose removal lowers it.
        name: The client's name, for the last column; empty if it has none.

    Example:
        >>> record = InfluenceRecord(3, 80, 5, 0.25, 0, {"global/loss": -0.02})
        >>> record.on("global/loss"), record.on("global/acc")
        (-0.02, nan)
    """

    client_id: int
    num_train: int
    rounds: int
    parameters: float
    dropped_layers: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    name: str = ""

    def on(self, metric: str) -> float:
        """Return the influence on a metric; nan if it was not measured."""
        return self.metrics.get(metric, math.nan)


def ranked(records: Iterable[InfluenceRecord], metric: str) -> list[InfluenceRecord]:
    """Return records with the lowest influence on a metric first; undefined ones come last.

    Example:
        >>> records = [InfluenceRecord(c, 1, 1, 0.0, 0, {"loss": x}) for c, x in enumerate((1, -1))]
        >>> [record.client_id for record in ranked(records, "loss")]
        [1, 0]
    """

    def place(record: InfluenceRecord) -> tuple[bool, float, int]:
        value = record.on(metric)
        return math.isnan(value), 0.0 if math.isnan(value) else value, record.client_id

    return sorted(records, key=place)


def write_influence_csv(
    path: str | os.PathLike[str], records: Sequence[InfluenceRecord], metric: str
) -> None:
    """Write one row per client, ranked by a metric; a reader never sees half a file.

    Args:
        path: The file, by convention ``influence.csv`` in the run folder.
        records: The clients, in any order.
        metric: The metric that ranks them; its column comes first of all metrics.

    Raises:
        EnvironmentFailure: The file cannot be written.

    Example:
        >>> path = getfixture("tmp_path") / "influence.csv"
        >>> records = [InfluenceRecord(0, 8, 2, 0.5, 0, {"global/loss": 0.25})]
        >>> write_influence_csv(path, records, "global/loss")
        >>> print(path.read_text(), end="")
        rank,client_id,num_train,rounds,parameters,dropped_layers,influence/global/loss
        1,0,8,2,0.5,0,0.25
        >>> read_influence_csv(path)[0].on("global/loss")
        0.25
    """
    others = dict.fromkeys(name for record in records for name in record.metrics)
    metrics = [*([metric] if metric in others else []), *(n for n in others if n != metric)]
    has_names = any(record.name for record in records)

    def named(record: InfluenceRecord) -> list[str]:
        return [record.name] if has_names else []

    rows = [
        [rank, record.client_id, record.num_train, record.rounds, record.parameters,
         record.dropped_layers, *(record.on(name) for name in metrics), *named(record)]
        for rank, record in enumerate(ranked(records, metric), start=1)
    ]  # fmt: skip
    header = [*_COLUMNS, *(f"{_METRIC}{name}" for name in metrics)]
    write_csv(path, [*header, NAME_COLUMN] if has_names else header, rows)


def read_influence_csv(path: str | os.PathLike[str]) -> list[InfluenceRecord]:
    """Read a table that :func:`write_influence_csv` has written, in the order of the file.

    Raises:
        EnvironmentFailure: The file cannot be read.
        DataError: The header differs, or a row does not fit it; the error names the line.
    """
    with os_errors_as_failures("read", path):
        text = Path(path).read_text(encoding="utf-8", errors="replace")
    rows = csv.reader(io.StringIO(text, newline=""))
    header = next(rows, [])
    called = header[-1:] == [NAME_COLUMN]
    end = len(header) - called
    names = [name.removeprefix(_METRIC) for name in header[len(_COLUMNS) : end]]
    if tuple(header[: len(_COLUMNS)]) != _COLUMNS:
        raise DataError(f"{path}:1: expected a header with {','.join(_COLUMNS)}, got {header}.")
    records = []
    for row in rows:
        try:
            _, client, examples, rounds, length, dropped, *values = row[:end] if called else row
            metrics = {n: float(value) for n, value in zip(names, values, strict=True)}
            records.append(
                InfluenceRecord(
                    int(client),
                    int(examples),
                    int(rounds),
                    float(length),
                    int(dropped),
                    metrics,
                    row[end] if called else "",
                )
            )
        except ValueError as error:
            raise DataError(f"{path}:{rows.line_num}: {error}.") from None
    return records
