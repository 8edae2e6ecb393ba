"""CSV files of runs and studies as pandas DataFrames."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedlightning.core.client_names import NAME_COLUMN
from fedlightning.errors import ConfigError, EnvironmentFailure, did_you_mean
from fedlightning.storage.csv_files import read_csv
from fedlightning.storage.files import os_errors_as_failures

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["check_pandas", "read_columns", "read_frame"]

_TEXTS = {"condition", "family", "group", "note", "other", "variant", NAME_COLUMN}


def check_pandas() -> Any:
    """Return the module pandas.

    Raises:
        EnvironmentFailure: It is not installed.
    """
    try:
        import pandas
    except ImportError as error:
        raise EnvironmentFailure(
            "a DataFrame needs pandas: pip install 'fedlightning[table]'."
        ) from error
    return pandas


def read_frame(folder: Path, table: str) -> pd.DataFrame:
    """Return a CSV file of a folder; numbers are those of the file to the last bit.

    Args:
        folder: The folder.
        table: The file's name without ``.csv``.

    Raises:
        ConfigError: The folder has no such table; the message says which it has.
        EnvironmentFailure: pandas is not installed, or the file cannot be read.
    """
    pandas = check_pandas()
    there = sorted(each.stem for each in folder.glob("*.csv"))
    if table not in there:
        raise ConfigError(
            f"{folder} has no table {table!r}, only {', '.join(there) or 'none at all'}."
            f"{did_you_mean(table, there)}"
        )
    frame: pd.DataFrame = pandas.DataFrame(read_columns(folder / f"{table}.csv"))
    return frame


def read_columns(path: Path) -> dict[str, list[Any]]:
    r"""Return the columns of a CSV file; of a column of numbers, an empty cell is nan.

    Example:
        >>> path = getfixture("tmp_path") / "clients.csv"
        >>> _ = path.write_text("client_id,acc_after,client_name\n0,0.1,7\n1,,mayo\n")
        >>> read_columns(path)
        {'client_id': [0, 1], 'acc_after': [0.1, nan], 'client_name': ['7', 'mayo']}
    """
    with os_errors_as_failures("read", path):
        header, rows = read_csv(path)
    return {name: _values(name, [row[at] for row in rows]) for at, name in enumerate(header)}


def _values(name: str, cells: Sequence[str]) -> list[Any]:
    if name in _TEXTS:
        return list(cells)
    for kind in (int, _number):
        try:
            return [kind(cell) for cell in cells]
        except ValueError:
            continue
    return list(cells)


def _number(cell: str) -> float:
    return float(cell) if cell else float("nan")
