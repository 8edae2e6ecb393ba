"""A table whose rows say whose they are."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fedlightning.datamodules.base import FederatedDataModule
from fedlightning.datamodules.client_splits import (
    ClientSplit,
    GroupSplit,
    SplitWithin,
    TimeSplit,
    split_of,
    text_columns,
)
from fedlightning.datamodules.columns import as_names, as_written
from fedlightning.datamodules.examples import Examples, TensorExamples
from fedlightning.datamodules.partitions.natural import NaturalIds
from fedlightning.datamodules.targets import Labels, check_filled, class_names
from fedlightning.errors import ConfigError, DataError, EnvironmentFailure, did_you_mean

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["FederatedTable"]


class FederatedTable(FederatedDataModule):
    """A table, one client per value of a column: hospitals, users, devices (extra ``table``).

    Inputs are float32, shape (n, features). Labels that are text, booleans or a few whole numbers
    are classes, numbered in sorted order (``classes`` has their names); floating-point ones are
    targets of a regression, float32. ``regression`` says which where whole numbers may be either,
    such as ages. Several label columns give labels of shape (n, columns), float32.

    Args:
        train: A DataFrame, or the path of a ``.csv`` or ``.parquet`` file.
        client: The column with the owner of each row. In a CSV file it is read as it is written:
            ``NA``, ``001`` and ``1e5`` are names as any other.
        label: The column with the label, or several; None for data without labels.
        features: The columns with the inputs; None means all others that are numbers. One of text
            has to be named in ``categories``, or be left out.
        categories: Columns of text, or of numbers that are codes: each becomes one input per value
            that occurs in any client's training rows; a row with another value has zeros in all of
            them. 1 and 1.0 are one value, also where one table has them as floats or as objects.
        test: Test rows likewise; None takes a share of each client's, see ``split``.
        split: How each client's rows are divided where ``test`` is None: ``RandomSplit``,
            ``TimeSplit("date")``, ``GroupSplit("patient_id")``; None means at random, a fifth to
            test on. Validation rows (``val_fraction``) follow it. Its column is not an input.
        scale: Whether inputs are standardised with mean and standard deviation of the training
            rows of all clients that train, as they can find out together from sums. Rows to
            validate or test on, and those of ``held_out_clients``, have no part in them.
        min_samples: Clients with fewer training rows are left out.
        regression: Whether one label column holds targets of a regression, not classes; None
            decides by its values, and refuses more than 20 different whole numbers.
        kwargs: ``batch_size``, ``val_fraction``, ...: see :class:`FederatedDataModule`. The number
            of clients follows from the table.

    Attributes:
        classes: The labels' names in the order of their numbers; empty for a regression.
        features: The names of the inputs, in their order; known after ``setup``.

    Raises:
        ConfigError: A column does not exist, or cannot be an input.
        DataError: The table cannot be read, or a row lacks its owner, an input or its label.
        EnvironmentFailure: pandas is not installed.

    Example:
        >>> import pandas as pd
        >>> rows = {"hospital": ["mayo", "charite"] * 10, "age": range(20), "ill": [0, 0, 1, 1] * 5}
        >>> data = FederatedTable(pd.DataFrame(rows), client="hospital", label="ill", seed=0)
        >>> data.setup()
        >>> data.client_names, data.features, data.num_classes
        (('charite', 'mayo'), ('age',), 2)
        >>> data.num_examples(0, "train"), data.num_examples(0, "test")
        (8, 2)
    """

    def __init__(
        self,
        train: Any,
        client: str,
        label: str | list[str] | None = None,
        features: list[str] | None = None,
        categories: list[str] | None = None,
        test: Any = None,
        split: ClientSplit | None = None,
        scale: bool = True,
        min_samples: int = 1,
        regression: bool | None = None,
        **kwargs: Any,
    ) -> None:
        for name in ("num_clients", "partition"):
            if name in kwargs:
                raise ConfigError(f"{name} follows from the column client={client!r}; leave it out")
        texts = text_columns(client, split)
        self._tables = [
            _frame(name, table, texts)
            for name, table in (("train", train), ("test", test))
            if name == "train" or table is not None
        ]
        self.client_column = client
        self.label_columns = [label] if isinstance(label, str) else list(label or [])
        self._one_label = isinstance(label, str)
        self.regression = regression
        self._files = [str(each) if isinstance(each, (str, Path)) else "" for each in (train, test)]
        split = split_of(test, split)
        first = self._tables[0]
        for table in self._tables:
            _check_columns(table, "client", [client])
            _check_columns(table, "label", self.label_columns)
            _check_columns(table, "features", features or [])
            _check_columns(table, "categories", categories or [])
        self._categories = list(categories or [])
        self._numbers = self._inputs_among(first, features, split)
        for table in self._tables[1:]:
            _check_columns(table, "features", self._numbers)
            self._check_numbers(table, self._numbers)
        if not self._one_label:
            self._check_labels()
        owners = NaturalIds(first[client].to_numpy(), min_samples=min_samples)
        self.client_names = owners.names
        super().__init__(num_clients=len(self.client_names), partition=None, **kwargs)
        self.partition = NaturalIds(client, min_samples=min_samples)
        self.client_split = split
        self.scale = scale
        self.classes: tuple[str, ...] = ()
        self.features: tuple[str, ...] = ()

    def load(self) -> tuple[Examples, Examples]:
        """Make inputs and labels of the rows."""
        first = self._tables[0]
        self._check_filled()
        values = {name: np.unique(as_names(first[name].to_numpy())) for name in self._categories}
        self.features = (
            *self._numbers,
            *(f"{name}={value}" for name, known in values.items() for value in known),
        )
        inputs = [self._inputs(table, values) for table in self._tables]
        labels = self._labels()
        pools = [
            _Rows(each, given, table)
            for each, given, table in zip(inputs, labels, self._tables, strict=True)
        ]
        if len(pools) == 1:
            assert self.client_split is not None
            self.partition = SplitWithin(self.partition, self.client_split)
        return pools[0], pools[-1]

    def _set_up(self) -> None:
        super()._set_up()
        # Only now is it known which rows are trained on: nothing is learned from the others.
        pools = {id(pool): pool for pool in (self.pooled.train, self.pooled.test)}.values()
        rows = np.concatenate([self.indices(client, "train") for client in self.training_clients])
        few = len(self._numbers)
        first = self.pooled.train
        assert isinstance(first, _Rows)
        known = first.inputs.numpy()[rows]
        kept = np.concatenate([np.ones(few, bool), (known[:, few:] != 0).any(axis=0)])
        mean, std = known[:, :few].mean(axis=0), known[:, :few].std(axis=0)
        scales = np.where(std > 1e-12 * np.abs(mean), std, 1.0)
        for pool in pools:
            assert isinstance(pool, _Rows)
            inputs = pool.inputs.numpy()
            if self.scale:
                inputs[:, :few] = (inputs[:, :few] - mean) / scales
            pool.inputs = torch.from_numpy(inputs[:, kept].astype(np.float32))
        self.features = tuple(
            name for name, is_kept in zip(self.features, kept, strict=True) if is_kept
        )

    def _inputs_among(
        self, table: pd.DataFrame, features: list[str] | None, split: ClientSplit | None
    ) -> list[str]:
        """Return the columns that are inputs as they are, as numbers."""
        used = {self.client_column, *self.label_columns, *self._categories}
        if isinstance(split, (TimeSplit, GroupSplit)) and isinstance(split.key, str):
            _check_columns(table, "split", [split.key])
            used.add(split.key)
        names = features if features is not None else [n for n in table.columns if n not in used]
        names = [name for name in names if name not in self._categories]
        self._check_numbers(table, names)
        if not names and not self._categories:
            raise ConfigError(f"no column is left for inputs, beside {', '.join(sorted(used))}")
        return [str(name) for name in names]

    def _check_numbers(self, table: pd.DataFrame, names: Sequence[str]) -> None:
        for name in names:
            if table[name].dtype.kind not in "iufb":
                raise ConfigError(
                    f"column {name!r} holds {table[name].dtype}, not numbers: name it in "
                    f"categories, which makes an input of each of its {table[name].nunique():,} "
                    "values, or leave it out of features"
                )

    def _check_labels(self) -> None:
        """Refuse several label columns that are not numbers."""
        for table in self._tables:
            for name in self.label_columns:
                if table[name].dtype.kind not in "iufb":
                    raise ConfigError(
                        f"label column {name!r} holds {table[name].dtype}, not numbers: of several "
                        "label columns each has to be one"
                    )

    def _check_filled(self) -> None:
        """Refuse a row that lacks an input or a label."""
        rows = zip(("row", "test row"), self._tables, self._files, strict=False)
        for what, table, file in rows:
            for name in [*self._numbers, *self._categories, *self.label_columns]:
                check_filled(what, name, table[name].to_numpy(), file)

    def _inputs(self, table: pd.DataFrame, values: dict[str, np.ndarray]) -> np.ndarray:
        columns = [table[name].to_numpy(np.float64, na_value=np.nan) for name in self._numbers]
        for name, known in values.items():
            names = as_names(table[name].to_numpy())
            columns += [(names == value).astype(np.float64) for value in known]
        return np.stack(columns, axis=1)

    def _labels(self) -> list[Any]:
        names = self.label_columns
        if not names:
            return [None] * len(self._tables)
        if not self._one_label:
            return [table[names].to_numpy(np.float32, na_value=np.nan) for table in self._tables]
        columns = [_values(table[names[0]]) for table in self._tables]
        known = class_names(names[0], columns[0], self.regression)
        if known is not None:
            self.classes = tuple(map(str, known))
            self.num_classes = len(known)
        labels = Labels(names[0], known)
        return [labels.of(column) for column in columns]


class _Rows(TensorExamples):
    """Rows as inputs and labels, with the table's columns."""

    def __init__(self, inputs: np.ndarray, labels: Any, table: pd.DataFrame) -> None:
        super().__init__(inputs, labels)
        self._table = table

    def content(self) -> bytes:
        """Return a digest of all inputs, which are not many."""
        return hashlib.sha256(self.inputs.numpy().tobytes()).digest()

    def column(self, name: str) -> np.ndarray:
        """Return a column of the table."""
        _check_columns(self._table, "column", [name])
        return np.asarray(self._table[name].to_numpy())


def _values(column: pd.Series[Any]) -> np.ndarray:
    """Return a column without missing values; pandas' own numbers become NumPy's."""
    kinds = {"i": np.int64, "u": np.int64, "f": np.float64, "b": np.bool_}
    plain = column.to_numpy(kinds.get(column.dtype.kind))
    return np.asarray(plain)


def _frame(name: str, given: Any, as_texts: Mapping[str, bool]) -> pd.DataFrame:
    """Return a table with each column once, under its name as text."""
    table = _read(name, given, as_texts)
    columns = [str(column) for column in table.columns]
    twice = next((column for column in columns if columns.count(column) > 1), None)
    if twice is not None:
        raise DataError(f"{name}: the table has two columns {twice!r}; rename one")
    return table.set_axis(columns, axis=1)


def _read(name: str, given: Any, as_texts: Mapping[str, bool]) -> pd.DataFrame:
    try:
        import pandas as pd
    except ImportError:
        raise EnvironmentFailure(
            "FederatedTable needs pandas: pip install 'fedlightning[table]'"
        ) from None
    if isinstance(given, pd.DataFrame):
        return given.reset_index(drop=True)
    if not isinstance(given, (str, Path)):
        raise ConfigError(f"{name} must be a DataFrame or a path, got {type(given).__name__}")
    path = Path(given)
    try:
        if path.suffix == ".parquet":
            return pd.read_parquet(path)
        if path.suffix in (".csv", ".gz", ".txt", ".tsv"):
            separator = "\t" if path.suffix == ".tsv" else ","
            table = pd.read_csv(path, sep=separator)
            texts = pd.read_csv(
                path, sep=separator, usecols=as_texts.__contains__, dtype=str, na_filter=False
            )
            for column in texts.columns:
                table[column] = as_written(texts[column].tolist(), as_texts[column])
            return table
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    except ImportError as error:
        raise EnvironmentFailure(
            f"{path} needs pyarrow: pip install 'fedlightning[table]'"
        ) from error
    except Exception as error:  # parser and decoder errors are of many types
        raise DataError(f"{path} is not a table: {type(error).__name__}: {error}") from error
    raise ConfigError(f"{name}={path}: a table is a .csv or .parquet file, got {path.suffix!r}")


def _check_columns(table: pd.DataFrame, name: str, columns: Sequence[str]) -> None:
    known = [str(column) for column in table.columns]
    for column in columns:
        if column not in known:
            listed = ", ".join(known[:10]) + (", ..." if len(known) > 10 else "")
            near = did_you_mean(str(column), known)
            raise ConfigError(
                f"{name}={column!r} is not a column of the table.{near} It has {listed}."
            )
