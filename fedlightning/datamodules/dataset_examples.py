"""Examples that stay in a map-style dataset and are read when they are visited."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from pytorch_lightning.utilities import move_data_to_device
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset
from torch.utils.data import default_collate as torch_default_collate

from fedlightning.core.batches import Batch
from fedlightning.core.seeding import Key
from fedlightning.core.validation import check_integer
from fedlightning.datamodules.examples import Examples, SampleError, label_array
from fedlightning.errors import DataError, FederationError

__all__ = ["DatasetExamples", "is_map_style"]


class DatasetExamples(Examples):
    """The items of a map-style dataset, for data that does not fit in memory.

    Batches come from a ``torch.utils.data.DataLoader`` over the given indices. Pairs become
    ``(inputs, labels)``, as with tensors; items of any other structure become what the collation
    returns.

    Args:
        dataset: Has ``__len__`` and ``__getitem__``.
        labels: One label per example, for the partition: a sequence, array or tensor of length n.
            None uses the dataset's ``targets`` or ``labels``; without either, every item is read
            once for its second entry.
        num_workers: Processes that read ahead. They are started for each local epoch, so for small
            clients 0, reading in this process, is fastest.
        collate: Makes a batch of a list of items; torch's default collation if None.

    Raises:
        ConfigError: ``num_workers`` is negative.
        DataError: The dataset has no length, or its number of labels differs from it.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> pairs = TensorDataset(torch.arange(6.0).view(3, 2), torch.tensor([0, 1, 1]))
        >>> pool = DatasetExamples(pairs)
        >>> pool.labels.tolist()
        [0, 1, 1]
        >>> rows, cpu = torch.tensor([2, 0]), torch.device("cpu")
        >>> inputs, labels = next(pool.batches(rows, 5, drop_last=False, device=cpu, key=None))
        >>> inputs.tolist(), labels.tolist()
        ([[4.0, 5.0], [0.0, 1.0]], [1, 0])
    """

    fault_error = FederationError

    def __init__(
        self,
        dataset: Dataset[Any],
        labels: Any = None,
        num_workers: int = 0,
        collate: Callable[[list[Any]], Batch] | None = None,
    ) -> None:
        if not is_map_style(dataset):
            raise DataError(
                f"{type(dataset).__name__} is not a map-style dataset: "
                f"it needs __len__ and __getitem__, called with an index"
            )
        self.dataset: Any = dataset
        self.num_workers = check_integer("num_workers", num_workers, at_least=0)
        self._collate = _Collate(collate)
        self._unreadable: dict[int, str] = {}
        found = labels if labels is not None else _stored_labels(dataset)
        self.labels = label_array(found) if found is not None else self._read_labels()
        if self.labels is not None and len(self.labels) != len(self):
            raise DataError(f"{len(self)} examples, but {len(self.labels)} labels")

    def __len__(self) -> int:
        return len(self.dataset)

    def batches(
        self,
        rows: Tensor,
        batch_size: int,
        *,
        drop_last: bool,
        device: torch.device,
        key: Key | None,
    ) -> Iterator[Batch]:
        """Read the batches through a loader; see :meth:`Examples.batches`."""
        indices = rows.tolist()
        stop = len(indices) - len(indices) % batch_size if drop_last else len(indices)
        loader: DataLoader[Any] = DataLoader(
            _Guarded(self.dataset),
            batch_sampler=[indices[i : i + batch_size] for i in range(0, stop, batch_size)],
            num_workers=self.num_workers,
            collate_fn=self._collate,
            # Seeds the workers. Without one the loader would draw from the global generator.
            generator=torch.Generator().manual_seed(_worker_seed(key)),
        )
        try:
            for batch in loader:
                if isinstance(batch, _Failure):
                    raise SampleError(batch.index, batch.text)
                yield batch if device.type == "cpu" else move_data_to_device(batch, device)
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise SampleError(None, _described(error)) from error

    def fault(self, rows: np.ndarray) -> tuple[int, str] | None:
        """Return the first of ``rows`` whose item could not be read for its label, and why."""
        for index in rows.tolist() if self._unreadable else ():
            if index in self._unreadable:
                return index, self._unreadable[index]
        return None

    def _read_labels(self) -> np.ndarray | None:
        """Return the second entries of all items, with 0 for an item that cannot be read.

        :meth:`fault` reports such an item if a client holds it.
        """
        guarded = _Guarded(self.dataset)
        labels: list[Any] = []
        for index in range(len(self)):
            item = guarded[index]
            if isinstance(item, _Failure):
                self._unreadable[index] = item.text
                labels.append(0)
            elif isinstance(item, (tuple, list)) and len(item) > 1 and np.ndim(item[1]) == 0:
                labels.append(item[1].item() if isinstance(item[1], Tensor) else item[1])
            else:
                return None
        return label_array(np.array(labels))


_COLLATE_HINT = (
    "; torch's default collation cannot make a batch of these items: pass collate, a function that "
    "makes a batch of a list of items, e.g. by padding"
)


class _Failure:
    """An exception on its way out of a worker process; raising would lose its type and text."""

    def __init__(self, index: int | None, error: Exception, hint: str = "") -> None:
        self.index = index
        self.text = _described(error) + hint


class _Guarded(Dataset[Any]):
    """The dataset, with a failure in place of an item that cannot be read."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self._dataset = dataset

    def __getitem__(self, index: int) -> Any:
        try:
            return self._dataset[index]
        except Exception as error:
            return _Failure(index, error)


class _Collate:
    """The collation; it passes a failure on, and makes a tuple of pairs, as tensors do."""

    def __init__(self, collate: Callable[[list[Any]], Batch] | None) -> None:
        self._collate = collate or torch_default_collate
        self._hint = "" if collate is not None else _COLLATE_HINT

    def __call__(self, items: list[Any]) -> Batch:
        for item in items:
            if isinstance(item, _Failure):
                return item
        try:
            batch = self._collate(items)
        except Exception as error:
            return _Failure(None, error, self._hint)
        return tuple(batch) if type(batch) is list and type(items[0]) is tuple else batch


def is_map_style(dataset: Any) -> bool:
    """Whether items are read by index; text and mappings by name have the methods, but do not.

    Example:
        >>> is_map_style([0, 1]), is_map_style("ab"), is_map_style({"a": 0})
        (True, False, False)
    """
    methods = hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")
    return methods and not isinstance(dataset, (str, bytes, Mapping))


def _stored_labels(dataset: Any) -> Any:
    """Return the labels that a dataset keeps beside its items, or None."""
    for name in ("targets", "labels"):
        if getattr(dataset, name, None) is not None:
            return getattr(dataset, name)
    if isinstance(dataset, Subset):
        whole = _stored_labels(dataset.dataset)
        return None if whole is None else label_array(whole)[list(dataset.indices)]
    if isinstance(dataset, ConcatDataset):
        parts = [_stored_labels(part) for part in dataset.datasets]
        if any(part is None for part in parts):
            return None
        return np.concatenate([label_array(part) for part in parts])
    return None


def _worker_seed(key: Key | None) -> int:
    """Return a number from the key's stream other than the one that seeds the epoch's order."""
    return 0 if key is None else int(key.sequence().generate_state(2, np.uint64)[1] >> 1)


def _described(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
