"""Times as they come in tables: numbers, dates, or text, in an order that is never guessed."""

from __future__ import annotations

import datetime
import re
from typing import Any

import numpy as np

from fedlightning.errors import DataError

__all__ = ["sortable_times"]

_ISO = re.compile(r"\d{4}-\d")
_FORMAT_HINT = "say how they are written, e.g. format='%d.%m.%Y' or format='%m/%d/%Y %H:%M'"


def sortable_times(values: np.ndarray, format: str | None = None) -> np.ndarray:  # noqa: A002
    """Return times that sort from the earliest to the latest, shape (n,).

    Numbers and dates stay as they are. Text is read by ``format``; without one it has to be ISO
    8601 (``2025-12-31``, ``2025-12-31T08:00+01:00``), or text of one shape whose order is that of
    its letters and digits (``20251231``, ``visit 03``). Times of several zones are compared as
    moments.

    Args:
        values: Numbers, dates or text, none of them missing.
        format: How text is written, in the codes of ``datetime.strptime``.

    Raises:
        DataError: The order is not known: days or months come first, widths differ, some times have
            a zone and others none, or types differ.

    Example:
        >>> times = sortable_times(np.array(["31.01.2025", "01.12.2024"]), "%d.%m.%Y")
        >>> bool(times[1] < times[0])
        True
    """
    listed = values.tolist() if values.dtype.kind in "OU" else []
    if listed and all(isinstance(value, str) for value in listed):
        return _texts(values.astype(str), format)
    if format is not None and len(values):
        kind = type(listed[0]).__name__ if listed else str(values.dtype)
        raise DataError(
            f"format={format!r} is for times that are text, and these are {kind}: leave it out, or "
            "pass them as text"
        )
    if listed:
        return _objects(listed)
    if values.dtype.kind in "iuf":
        _check_not_day_first(values)
    return values


def _objects(values: list[Any]) -> np.ndarray:
    """Return dates, or other objects of one type that have an order."""
    if all(isinstance(value, datetime.datetime) for value in values):
        return _moments(values, [str(value) for value in values])
    if len({type(value) for value in values}) > 1:
        raise DataError(
            "they are of several types, which have no order: make them all numbers, dates or text"
        )
    return np.array([*values, None], object)[:-1]


def _texts(texts: np.ndarray, format: str | None) -> np.ndarray:  # noqa: A002
    found, places = np.unique(texts, return_inverse=True)
    written = [str(text) for text in found]
    if format is not None:
        read = [_parsed(text, format) for text in written]
    elif all(map(_ISO.match, written)):
        read = [_iso(text) for text in written]
    else:
        _check_order_of_text(written)
        return texts
    moments: np.ndarray = _moments(read, written)[places.ravel()]
    return moments


def _parsed(text: str, format: str) -> datetime.datetime:  # noqa: A002
    try:
        return datetime.datetime.strptime(text.strip(), format)
    except ValueError as error:
        raise DataError(f"{text!r} is not written as format={format!r} says: {error}") from None


def _iso(text: str) -> datetime.datetime:
    plain = re.sub("[Zz]$", "+00:00", text.strip())  # which Python 3.10 cannot read
    try:
        return datetime.datetime.fromisoformat(plain)
    except ValueError:
        raise DataError(f"{text!r} is not a date in ISO 8601: {_FORMAT_HINT}") from None


def _moments(times: list[datetime.datetime], written: list[str]) -> np.ndarray:
    """Return moments as datetime64; those with a zone in UTC."""
    zoned = [time.utcoffset() is not None for time in times]
    if len(set(zoned)) > 1:
        raise DataError(
            f"{written[zoned.index(True)]!r} has a time zone and "
            f"{written[zoned.index(False)]!r} has none, so which is earlier is not known: give all "
            "of them one, or none"
        )
    if any(zoned):
        times = [time.astimezone(datetime.timezone.utc).replace(tzinfo=None) for time in times]
    return np.array(times, "datetime64[us]")


def _check_order_of_text(texts: list[str]) -> None:
    """Refuse text whose alphabetical order may not be that of the times."""
    first = texts[0]
    shape = re.sub(r"\d", "0", first)
    other = next((text for text in texts if re.sub(r"\d", "0", text) != shape), None)
    if other is not None:
        raise DataError(
            f"{first!r} and {other!r} are written differently, so their order as text may not be "
            f"that of the times: {_FORMAT_HINT}"
        )
    runs = re.findall(r"\d+", first)
    if len(runs) > 1 and len(runs[0]) < 4:
        raise DataError(
            f"{first!r} may begin with the day or the month, so its order as text is not that of "
            f"the times: {_FORMAT_HINT}"
        )
    if len(runs) == 1 and runs[0] == first:
        _check_not_day_first(np.array([int(text) for text in texts]))


def _check_not_day_first(values: np.ndarray) -> None:
    """Refuse numbers that are dates with the year at their end, such as 31122025."""
    if not len(values) or not ((values > 1e6) & (values < 1e8) & (values == np.rint(values))).all():
        return
    year, first = values % 10_000, values // 10_000
    parts = first // 100, first % 100
    ends_in_year = (year >= 1900) & (year < 2100)
    days = (np.minimum(*parts) >= 1) & (np.minimum(*parts) <= 12) & (np.maximum(*parts) <= 31)
    if (ends_in_year & days).all():
        raise DataError(
            f"{int(values[0])} looks like a date with the year at its end, whose order is not that "
            f"of the times: pass text, and {_FORMAT_HINT.replace('.%m.', '%m')}"
        )
