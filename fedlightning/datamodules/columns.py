"""What a column of a table lacks."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["missing_rows"]


def missing_rows(values: np.ndarray) -> np.ndarray:
    """Return the places of the values that are missing: None, NaN, NaT or pandas' NA.

    Example:
        >>> missing_rows(np.array(["mayo", None, float("nan")], object)).tolist()
        [1, 2]
    """
    if values.dtype.kind == "O":
        return np.flatnonzero([_is_missing(value) for value in values.tolist()])
    return np.flatnonzero(values != values)


def _is_missing(value: Any) -> bool:
    same = value == value
    # pandas' NA compares to itself as NA, which is no truth value.
    return value is None or not (isinstance(same, (bool, np.bool_)) and same)
