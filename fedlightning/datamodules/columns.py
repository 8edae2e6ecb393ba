"""What a column of a table lacks, and what it says where it holds names."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import numpy as np

__all__ = ["as_names", "as_written", "missing_rows"]

_WHOLE = re.compile(r"0|-?[1-9]\d{0,17}", re.ASCII)


def as_written(texts: Sequence[str | None], numbers: bool = True) -> np.ndarray:
    """Return a column of names from a file: texts as they are, None where there is none.

    ``NA``, ``null``, ``001`` and ``1e5`` are names as any other.

    Args:
        texts: What the file says.
        numbers: Whether texts become int64 where each is a whole number in its shortest form: 9
            then comes before 10.

    Example:
        >>> as_written(["NA", "001", "", "1e5"]).tolist(), as_written(["10", "9"]).tolist()
        (['NA', '001', None, '1e5'], [10, 9])
    """
    whole = numbers and all(text is not None and _WHOLE.fullmatch(text) for text in texts)
    if whole and len(texts):
        return np.array([int(str(text)) for text in texts], np.int64)
    kept = [text if text is not None and text.strip() else None for text in texts]
    return np.array([*kept, None], object)[:-1]


def as_names(values: np.ndarray) -> np.ndarray:
    """Return values as text: the same text for the same value, whatever type its column has.

    The type depends on the rest of a column: 1 is 1.0 where a number was missing or has a fraction,
    and an object where there is text. A text is itself: "True" is True, and "01" is not 1.

    Args:
        values: A column, in which nothing is missing.

    Example:
        >>> as_names(np.array([1, 20])).tolist(), as_names(np.array([1.0, 2.5])).tolist()
        (['1', '20'], ['1', '2.5'])
        >>> as_names(np.array([1.0, True, "1", "01"], object)).tolist()
        ['1', 'True', '1', '01']
    """
    if values.dtype.kind == "O":
        return np.array([_name(value) for value in values], str)
    found, places = np.unique(values, return_inverse=True)  # few names of many rows
    names: np.ndarray = np.array([_name(value) for value in found], str)[places.ravel()]
    return names


def missing_rows(values: np.ndarray) -> np.ndarray:
    """Return the places of the values that are missing: None, NaN, NaT or pandas' NA.

    Example:
        >>> missing_rows(np.array(["mayo", None, float("nan")], object)).tolist()
        [1, 2]
    """
    if values.dtype.kind == "O":
        return np.flatnonzero([_is_missing(value) for value in values.tolist()])
    return np.flatnonzero(values != values)


def _name(value: Any) -> str:
    if isinstance(value, np.datetime64):
        return str(value.astype("datetime64[us]").item())  # one text, whatever its unit
    number = isinstance(value, (float, np.floating, Decimal)) and math.isfinite(value)
    return str(int(value) if number and value == int(value) else value)


def _is_missing(value: Any) -> bool:
    same = value == value
    # pandas' NA compares to itself as NA, which is no truth value.
    return value is None or not (isinstance(same, (bool, np.bool_)) and same)
