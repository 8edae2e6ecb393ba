"""Pools of examples, from which batches are read by index."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from fedlightning.core.batches import Batch
from fedlightning.core.seeding import Key
from fedlightning.datamodules.columns import missing_rows
from fedlightning.errors import DataError, FedLightningError

__all__ = ["Examples", "SampleError", "TensorExamples", "has_classes", "label_array", "sample_of"]


class SampleError(Exception):
    """An example cannot be read; the data module reports it with its client.

    Args:
        index: The example's index in the pool, or None if a whole batch failed.
        text: Type and text of the original error.
    """

    def __init__(self, index: int | None, text: str) -> None:
        super().__init__(index, text)
        self.index = index
        self.text = text


class Examples(ABC):
    """A pool of the examples of all clients.

    Attributes:
        labels: One label per example: int64, shape (n,), for data with classes; anything else, or
            None, for data without.
    """

    labels: np.ndarray | None
    fault_error: ClassVar[type[FedLightningError]] = DataError
    """Type of the error for an example that :meth:`fault` finds."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def batches(
        self,
        rows: Tensor,
        batch_size: int,
        *,
        drop_last: bool,
        device: torch.device,
        key: Key | None,
    ) -> Iterator[Batch]:
        """Yield the examples ``rows`` in that order.

        Args:
            rows: Indices into the pool in visiting order, int64 on the CPU, shape (n,).
            batch_size: Examples per batch; the last one may have fewer.
            drop_last: Drop a shorter last batch.
            device: Device of the batches.
            key: Names the random stream of a local epoch; None in evaluation.

        Raises:
            SampleError: An example cannot be read.
        """

    def fault(self, rows: np.ndarray) -> tuple[int, str] | None:
        """Return index and description of an unusable example in ``rows``, if there is one."""
        return None

    def column(self, name: str) -> np.ndarray:
        """Return what is known of every example under a name, such as its owner, shape (n,).

        Raises:
            DataError: Nothing is known under that name.
        """
        raise DataError(
            f"{name!r}: the examples have no columns; pass the values themselves, one per example"
        )

    def content(self) -> bytes:
        """Return bytes that change with the inputs, beside what sizes and labels already tell.

        Empty where that is not known without reading every example.
        """
        return b""

    @property
    def reads_ahead(self) -> bool:
        """Whether it helps to know which examples will be read next."""
        return False

    def expect(  # noqa: B027  # most pools have nothing to do
        self, passes: Iterable[tuple[Tensor, Key]], batch_size: int, *, drop_last: bool
    ) -> None:
        """Hear which training passes come next, so that processes can read ahead.

        Args:
            passes: Indices in visiting order, and the key of the local epoch, of each.
            batch_size: Examples per batch.
            drop_last: Drop a shorter last batch.
        """

    def close(self) -> None:  # noqa: B027  # most pools hold nothing
        """Free what reading holds, such as processes; the next batch needs no other call."""


class TensorExamples(Examples):
    """Examples held in memory as tensors; batches are ``(inputs, labels)``.

    For a device other than the CPU the whole pool is copied there once, at its first batch.

    Args:
        inputs: Tensor or array of shape (n, ...): images, features, token ids. The dtype is kept.
        labels: Tensor, array or sequence of shape (n, ...). Integers become int64; other dtypes are
            kept. None for data without labels: a batch is then the inputs alone.

    Raises:
        DataError: Inputs and labels differ in number, or are not numbers.

    Example:
        >>> pool = TensorExamples(torch.arange(6.0).view(3, 2), [0, 1, 1])
        >>> rows, cpu = torch.tensor([2, 0]), torch.device("cpu")
        >>> inputs, labels = next(pool.batches(rows, 5, drop_last=False, device=cpu, key=None))
        >>> inputs.tolist(), labels.tolist()
        ([[4.0, 5.0], [0.0, 1.0]], [1, 0])
    """

    def __init__(self, inputs: Any, labels: Any = None) -> None:
        self.inputs = _tensor(inputs, "inputs")
        self._targets = None if labels is None else _label_tensor(labels)
        if self._targets is not None and len(self._targets) != len(self.inputs):
            raise DataError(f"{len(self.inputs)} inputs, but {len(self._targets)} labels")
        self.labels = None if self._targets is None else self._targets.numpy()
        self._on_device: dict[torch.device, tuple[Tensor, Tensor | None]] = {}

    def __len__(self) -> int:
        return len(self.inputs)

    def batches(
        self,
        rows: Tensor,
        batch_size: int,
        *,
        drop_last: bool,
        device: torch.device,
        key: Key | None,
    ) -> Iterator[Batch]:
        """Cut the batches out of the pool; see :meth:`Examples.batches`."""
        inputs, labels = self._at(device)
        rows = rows.to(inputs.device)
        stop = len(rows) - len(rows) % batch_size if drop_last else len(rows)
        for start in range(0, stop, batch_size):
            chosen = rows[start : start + batch_size]
            if labels is None:
                yield inputs.index_select(0, chosen)
            else:
                yield inputs.index_select(0, chosen), labels.index_select(0, chosen)

    def fault(self, rows: np.ndarray) -> tuple[int, str] | None:
        """Return the first of ``rows`` with a non-finite number in its inputs or labels."""
        for values in (self.inputs, self._targets):
            if values is None or not (values.is_floating_point() or values.is_complex()):
                continue
            # A finite sum proves that all its terms are finite, which is the cheap way to find none
            # that is not. Piece by piece, because the sum makes a copy in the wider dtype.
            wide = torch.promote_types(values.dtype, torch.float64)
            if all(piece.sum(dtype=wide).isfinite() for piece in torch.split(values, 1 << 16)):
                continue
            finite = torch.isfinite(values.reshape(len(values), -1)).all(dim=1).numpy()
            bad = rows[~finite[rows]]
            if bad.size:
                return int(bad[0]), "non-finite value (NaN or infinity)"
        return None

    def _at(self, device: torch.device) -> tuple[Tensor, Tensor | None]:
        if device.type == "cpu":
            return self.inputs, self._targets
        device = torch.empty(0, device=device).device  # "cuda" becomes "cuda:0", say
        if device not in self._on_device:
            # Copies made in inference mode could never be trained on.
            with torch.inference_mode(False):
                labels = None if self._targets is None else self._targets.to(device)
                self._on_device[device] = self.inputs.to(device), labels
        return self._on_device[device]


_MOST_BYTES = 4 << 20


def sample_of(inputs: Tensor) -> bytes:
    """Return the bytes of evenly spaced examples, including the first and the last."""
    if not inputs.numel():
        return b""
    size = max(inputs[0].numel() * inputs.element_size(), 1)
    count = min(len(inputs), max(_MOST_BYTES // size, 2))
    rows = torch.linspace(0, len(inputs) - 1, count).round().long()
    chosen = inputs.index_select(0, rows).contiguous()
    return chosen.reshape(-1).view(torch.uint8).numpy().tobytes()


def has_classes(labels: np.ndarray | None) -> bool:
    """Whether there is one integer label per example.

    Example:
        >>> has_classes(np.array([0, 1])), has_classes(np.array([0.5, 1.0])), has_classes(None)
        (True, False, False)
    """
    return labels is not None and labels.ndim == 1 and labels.dtype == np.int64


def label_array(labels: Any) -> np.ndarray:
    """Return labels as an array: integers (and booleans) as int64, other numbers unchanged.

    Raises:
        DataError: They are not numbers.

    Example:
        >>> label_array([3, 1]).dtype, label_array([0.5]).dtype
        (dtype('int64'), dtype('float64'))
    """
    array: np.ndarray = _label_tensor(labels).numpy()
    return array


def _label_tensor(labels: Any) -> Tensor:
    if isinstance(labels, (list, tuple, np.ndarray)):
        objects = np.asarray(labels, object) if _has_none(labels) else np.empty(0)
        if (missing := missing_rows(objects)).size:
            raise DataError(f"example {missing[0]} has no label; fill it in or drop the example")
    tensor = _tensor(labels, "labels")
    return tensor if tensor.is_floating_point() else tensor.long()


def _has_none(labels: Any) -> bool:
    if isinstance(labels, np.ndarray):
        return labels.dtype.kind == "O" and labels.ndim == 1
    return any(label is None for label in labels)


def _tensor(values: Any, name: str) -> Tensor:
    if isinstance(values, Tensor):
        tensor = values.detach().cpu().contiguous()
    else:
        try:
            # A copy, because memory-mapped and read-only arrays make tensors that warn or crash.
            tensor = torch.from_numpy(np.array(values, order="C"))
        except (TypeError, ValueError) as error:
            raise DataError(f"{name} {_why_not_array(values, error)}") from None
    if tensor.ndim == 0:
        raise DataError(f"{name} must have one entry per example, got a single number")
    return tensor


def _why_not_array(values: Any, error: Exception) -> str:
    try:
        shapes = {tuple(np.shape(value)) for value in values}
    except (TypeError, ValueError):
        shapes = set()
    if len(shapes) > 1:
        few = " and ".join(map(str, sorted(shapes)[:2]))
        return (
            f"differ in shape from example to example, such as {few}: pass a dataset or "
            f"ClientDatasets' pairs, with a collate function that pads them"
        )
    return f"are not numbers: {error}"
