"""Labels in a column of a table: the names of classes, or numbers to predict."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from fedlightning.datamodules.columns import missing_rows
from fedlightning.errors import ConfigError, DataError

__all__ = ["Labels", "check_filled", "class_names"]

_MOST_CLASSES = 20
"""More different whole numbers may be quantities, such as ages: then it has to be said."""


def class_names(name: str, values: np.ndarray, regression: bool | None) -> list[Any] | None:
    """Return the classes in their order, or None if the labels are targets of a regression.

    Text and booleans are classes, numbers with fractions are targets. Whole numbers are classes
    where they are few; where they are many, as ages are, it has to be said.

    Args:
        name: The column.
        values: Its values in the training rows, none of them missing.
        regression: What the user says; None decides by the values.

    Raises:
        ConfigError: It is not known what they are, or they are text and targets.

    Example:
        >>> class_names("ill", np.array(["no", "yes", "no"]), None)
        ['no', 'yes']
        >>> class_names("age", np.arange(18, 90), True) is None
        True
        >>> class_names("age", np.arange(18, 90), None)
        Traceback (most recent call last):
        fedlightning.errors.ConfigError: label='age' holds 72 different whole numbers, 18 to 89: ...
    """
    kind = values.dtype.kind
    if regression:
        if kind not in "iufb":
            raise ConfigError(
                f"label={name!r} holds {_kind(values)}, not numbers, so it cannot be the target of "
                "a regression: leave regression out"
            )
        return None
    if kind == "f" and regression is None:
        return None
    if kind == "f" and not (values == np.rint(values)).all():
        raise ConfigError(
            f"label={name!r} has fractions, such as {_fraction(values)}, which are not classes: "
            "leave regression out, or make classes of them"
        )
    known = _in_order(set(values.tolist()))
    if regression is None and kind in "iu" and len(known) > _MOST_CLASSES:
        raise ConfigError(
            f"label={name!r} holds {len(known):,} different whole numbers, {known[0]} to "
            f"{known[-1]}: say regression=true if they are quantities, or regression=false if they "
            "are classes"
        )
    return known


class Labels:
    """The numbers of labels: those of classes, int64, or targets, float32.

    Args:
        name: The column.
        classes: The classes in their order; None for targets.

    Example:
        >>> Labels("ill", ["no", "yes"]).of(np.array(["yes", "no"])).tolist()
        [1, 0]
        >>> Labels("age", None).of(np.array([30, 41])).dtype
        dtype('float32')
    """

    def __init__(self, name: str, classes: Sequence[Any] | None) -> None:
        self.name = name
        self.classes = classes

    def of(self, values: np.ndarray) -> np.ndarray:
        """Return the labels of some rows, shape (n,).

        Raises:
            DataError: One is not among the classes.
        """
        if self.classes is None:
            return values.astype(np.float32)
        number = {value: at for at, value in enumerate(self.classes)}
        _check_known(self.name, values.tolist(), number)
        return np.array([number[value] for value in values.tolist()], np.int64)


def check_filled(
    what: str, name: str, values: np.ndarray, where: str = "", blank: bool = True
) -> None:
    """Refuse a column in which a row has nothing.

    Args:
        what: What the rows are called: ``row``, ``test row``.
        name: The column.
        values: Its values.
        where: The file, if there is one.
        blank: Whether text of nothing but spaces is nothing.

    Raises:
        DataError: A row has nothing.

    Example:
        >>> check_filled("row", "age", np.array([30.0, float("nan")]), "a.csv")
        Traceback (most recent call last):
        fedlightning.errors.DataError: a.csv: row 1 has no 'age' (1 of 2 rows have none); ...
    """
    missing = missing_rows(values)
    if not missing.size and blank and values.dtype.kind in "OU":
        missing = np.flatnonzero([not str(value).strip() for value in values.tolist()])
    if missing.size:
        raise DataError(
            f"{where and f'{where}: '}{what} {missing[0]} has no {name!r} ({missing.size:,} of "
            f"{len(values):,} rows have none); fill it in, drop the rows, or leave the column out"
            + ("; in a file, NA, null and None mean that there is none" if where else "")
        )


def _check_known(name: str, given: Iterable[Any], known: Mapping[Any, int]) -> None:
    """Refuse a test label that no training row has."""
    strange = next((value for value in given if value not in known), None)
    if strange is not None:
        few = ", ".join(map(str, list(known)[:10]))
        raise DataError(
            f"test label {strange!r} of {name!r} does not occur in training, which has {few}"
        )


def _in_order(values: set[Any]) -> list[Any]:
    try:
        return sorted(values)
    except TypeError:  # numbers and text, say
        return sorted(values, key=str)


def _kind(values: np.ndarray) -> str:
    return "text" if values.dtype.kind in "OU" else str(values.dtype)


def _fraction(values: np.ndarray) -> float:
    return float(values[values != np.rint(values)][0])
