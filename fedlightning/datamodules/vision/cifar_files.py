"""A reader of CIFAR's pickled batches that runs no code from the pickle."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np

from fedlightning.errors import DataError

__all__ = ["read_cifar_batch"]

_PIXELS = 3 * 32 * 32


def read_cifar_batch(path: str | Path, labels_key: str) -> tuple[np.ndarray, np.ndarray]:
    """Return images (n, 3, 32, 32) uint8 and labels (n,) int64 of one file.

    A pickle is a program. This reader lets it name only the five objects that a pickled byte array
    needs, and replaces them by stand-ins that merely store their arguments: no other code runs on
    the file's contents. The array is made afterwards, from checked values.

    Args:
        path: The file, as in ``cifar-10-batches-py`` or ``cifar-100-python``.
        labels_key: "labels" or "fine_labels".

    Raises:
        DataError: The file cannot be read, names another object, or does not hold such a batch.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            content = _DataOnly(file, encoding="latin1").load()
    except _RefusedError as error:
        raise DataError(f"{path} is refused: its pickle asks for {error}") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    except Exception as error:  # a damaged pickle fails in every way there is
        raise DataError(f"{path} is corrupt: {type(error).__name__}: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("data"), _Array):
        raise DataError(f"{path} is corrupt: it holds no array named data")
    images = _images(path, content["data"])
    labels = content.get(labels_key)
    if not isinstance(labels, list) or any(type(label) is not int for label in labels):
        raise DataError(f"{path} is corrupt: it holds no list of integers named {labels_key}")
    if len(labels) != len(images):
        raise DataError(f"{path} is corrupt: {len(images)} images, but {len(labels)} labels")
    return images, np.array(labels, np.int64)


def _images(path: Path, stored: _Array) -> np.ndarray:
    try:
        _, shape, dtype, column_major, values = stored.state
        if not isinstance(dtype, _Dtype) or column_major or len(shape) != 2 or shape[1] != _PIXELS:
            raise ValueError(f"shape {shape}")
        values = values.encode("latin1") if isinstance(values, str) else values
        return np.frombuffer(values, np.uint8).reshape(shape[0], 3, 32, 32)
    except (ValueError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} is corrupt: data must be bytes of shape (n, {_PIXELS}): {error}"
        ) from error


class _RefusedError(Exception):
    """The pickle names an object that a pickled byte array does not need."""


class _StandIn:
    """Stores the state that a pickle gives it.

    Because it has ``__setstate__``, a pickle cannot set its attributes, nor those of its class.
    """

    __slots__ = ("state",)

    def __init__(self, *arguments: object) -> None:
        self.state: Any = None

    def __setstate__(self, state: object) -> None:
        self.state = state


class _Array(_StandIn):
    __slots__ = ()


class _ArrayType(_StandIn):
    __slots__ = ()


class _Dtype(_StandIn):
    __slots__ = ()

    def __init__(self, name: object, *flags: object) -> None:
        super().__init__()
        if name != "u1":
            raise _RefusedError(f"the dtype {name!r}")


class _Latin1(bytes):
    """The result of ``_codecs.encode``, as Python 3 writes bytes in the old protocols."""

    def __new__(cls, text: str, encoding: str) -> _Latin1:
        if encoding != "latin1":
            raise _RefusedError(f"the encoding {encoding!r}")
        return super().__new__(cls, text.encode("latin1"))

    def __setstate__(self, state: object) -> None:
        raise _RefusedError("state of bytes")


class _DataOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        stand_in = {
            ("numpy.core.multiarray", "_reconstruct"): _Array,
            ("numpy._core.multiarray", "_reconstruct"): _Array,
            ("numpy", "ndarray"): _ArrayType,
            ("numpy", "dtype"): _Dtype,
            ("_codecs", "encode"): _Latin1,
        }.get((module, name))
        if stand_in is None:
            raise _RefusedError(f"{module}.{name}")
        return stand_in
