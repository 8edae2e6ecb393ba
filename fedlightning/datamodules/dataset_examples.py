"""Examples that stay in a map-style dataset and are read when they are visited."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from pytorch_lightning.utilities import move_data_to_device
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, Subset
from torch.utils.data import default_collate as torch_default_collate

from fedlightning.core.batches import Batch
from fedlightning.core.seeding import Key
from fedlightning.core.validation import check_integer
from fedlightning.datamodules.examples import (
    Examples,
    SampleError,
    TensorExamples,
    label_array,
    sample_of,
)
from fedlightning.datamodules.reading import BatchReader, Stream
from fedlightning.datamodules.structured import StructuredExamples, is_structured
from fedlightning.errors import DataError, FederationError, did_you_mean

__all__ = ["DatasetExamples", "Pairs", "column_of", "is_map_style"]


class DatasetExamples(Examples):
    """The items of a map-style dataset, for data that does not fit in memory.

    Pairs become ``(inputs, labels)``, as with tensors; items of any other structure become what the
    collation returns. A dataset that can read many items at once (``__getitems__``, which those of
    Hugging Face have) is asked for a whole batch.

    Args:
        dataset: Has ``__len__`` and ``__getitem__``.
        labels: One label per example, for the partition: a sequence, array or tensor of length n.
            None uses the column ``label_key`` if it is given, else the dataset's ``targets`` or
            ``labels``; without either, every item is read once for its second entry.
        num_workers: Processes that read ahead; they are shared by all clients and kept until
            :meth:`close`. Whether an example can be read is found out there.
        collate: Makes a batch of a list of items; torch's default collation if None.
        label_key: Of items that are mappings, the entry with the label.
        input_key: Of items that are mappings, the entry, or several, that the module gets as
            inputs: items become pairs of inputs and label. Several entries stay a mapping.

    Raises:
        ConfigError: ``num_workers`` is negative.
        DataError: The dataset has no length, its number of labels differs from it, or there is no
            such entry.

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
        >>> items = [{"text": [7, 8], "id": 0, "label": 1}, {"text": [9, 9], "id": 1, "label": 0}]
        >>> pool = DatasetExamples(items, label_key="label", input_key="text")
        >>> pool.labels.tolist(), pool.column("id").tolist()
        ([1, 0], [0, 1])
    """

    fault_error = FederationError

    def __init__(
        self,
        dataset: Dataset[Any],
        labels: Any = None,
        num_workers: int = 0,
        collate: Callable[[list[Any]], Batch] | None = None,
        label_key: str | None = None,
        input_key: str | Sequence[str] | None = None,
    ) -> None:
        if not is_map_style(dataset):
            raise DataError(
                f"{type(dataset).__name__} is not a map-style dataset: "
                f"it needs __len__ and __getitem__, called with an index"
            )
        self.dataset: Any = dataset
        self.num_workers = check_integer("num_workers", num_workers, at_least=0)
        pick = None if input_key is None else _Pick(input_key, label_key)
        self._reader = BatchReader(_Read(dataset, _Collate(collate), pick), self.num_workers)
        self._unreadable: dict[int, str] = {}
        if labels is None and label_key is not None:
            self.labels = label_array(self.column(label_key))
        else:
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
        """Read the batches of these examples; see :meth:`Examples.batches`."""
        stream = _stream(rows, batch_size, drop_last, key)
        try:
            for batch in self._reader.batches(stream):
                if isinstance(batch, _Failure):
                    raise SampleError(batch.index, batch.text)
                yield batch if device.type == "cpu" else move_data_to_device(batch, device)
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise SampleError(None, _described(error)) from error

    @property
    def reads_ahead(self) -> bool:
        """Whether :meth:`expect` is of use."""
        return self.num_workers > 0

    def expect(
        self, passes: Iterable[tuple[Tensor, Key]], batch_size: int, *, drop_last: bool
    ) -> None:
        """Let the processes read ahead; see :meth:`Examples.expect`."""
        self._reader.expect(_stream(rows, batch_size, drop_last, key) for rows, key in passes)

    def close(self) -> None:
        """End the processes that read; the next batch starts new ones."""
        self._reader.close()

    def column(self, name: str) -> np.ndarray:
        """Return one entry of every item, shape (n,); see :meth:`Examples.column`."""
        return column_of(self.dataset, name)

    def content(self) -> bytes:
        """Return what the dataset says of its items without reading them one by one."""
        return content_of(self.dataset)

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
        labels: list[Any] = []
        for index in range(len(self)):
            item = _guarded(self.dataset, index)
            if isinstance(item, _Failure):
                self._unreadable[index] = item.text
                labels.append(0)
            elif isinstance(item, (tuple, list)) and len(item) > 1 and np.ndim(item[1]) == 0:
                labels.append(item[1].item() if isinstance(item[1], Tensor) else item[1])
            else:
                return None
        return label_array(np.array(labels))


class Pairs(Dataset[Any]):
    """A client's ``(inputs, labels)`` as a dataset.

    Args:
        pair: Inputs, and labels or None, one of each per example.
        as_items: Whether inputs that make no array, such as sequences of several lengths, are kept
            as a list.
        label_key: Of labels in a mapping, the one that a partition sees.
    """

    inputs: Any
    targets: Any

    def __init__(self, pair: Any, as_items: bool, label_key: str | None = None) -> None:
        inputs, labels = pair
        self.several: StructuredExamples | None = None
        if is_structured(inputs) or is_structured(labels):
            self.several = StructuredExamples(inputs, labels, label_key)
            self.inputs = range(len(self.several))
            self.targets = self.several.labels
            return
        try:
            self.inputs = TensorExamples(inputs).inputs
        except DataError:
            if not as_items:
                raise
            self.inputs = inputs
        self.targets = None if labels is None else torch.from_numpy(label_array(labels))
        if self.targets is not None and len(self.targets) != len(self.inputs):
            raise DataError(f"{len(self.inputs)} inputs, but {len(self.targets)} labels")

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> Any:
        if self.several is not None:
            return self.several.item(index)
        if self.targets is None:
            return self.inputs[index]
        return self.inputs[index], self.targets[index]

    def content(self) -> bytes:
        """Return the bytes of evenly spaced examples, or the text of sequences."""
        if self.several is not None:
            return self.several.content()
        if isinstance(self.inputs, Tensor):
            return sample_of(self.inputs)
        return hashlib.sha256(repr([list(each) for each in self.inputs]).encode()).digest()


def content_of(dataset: Any) -> bytes:
    """Return bytes that change with a dataset's items, where that is known without reading all.

    Of those of Hugging Face, all rows up to 64 MiB, else 256 evenly spaced ones.
    """
    if isinstance(dataset, (Subset, ConcatDataset)) and not hasattr(dataset, "content"):
        parts = dataset.datasets if isinstance(dataset, ConcatDataset) else [dataset.dataset]
        return b"".join(map(content_of, parts))
    if hasattr(dataset, "with_format") and hasattr(dataset, "data") and len(dataset):
        rows: Any = np.linspace(0, len(dataset) - 1, min(len(dataset), 256)).astype(int)
        small = dataset.data.nbytes <= 64 << 20
        table = dataset.with_format("arrow")[slice(None) if small else np.unique(rows).tolist()]
        return hashlib.sha256(repr(table.to_pydict()).encode()).digest()
    own = getattr(dataset, "content", None)
    if type(dataset).__module__.startswith("fedlightning.") and callable(own):
        found: bytes = own()
        return found
    return b""


_COLLATE_HINT = (
    "; torch's default collation cannot make a batch of these items: pass collate, a function that "
    "makes a batch of a list of items, e.g. by padding (fedlightning.datamodules.Pad)"
)


class _Failure:
    """An exception on its way out of a worker process; raising would lose its type and text."""

    def __init__(self, index: int | None, error: Exception, hint: str = "") -> None:
        self.index = index
        self.text = _described(error) + hint


class _Read:
    """Makes a batch of a dataset's items; a failure takes the place of one that it cannot make."""

    def __init__(self, dataset: Any, collate: _Collate, pick: _Pick | None) -> None:
        self._dataset = dataset
        self._collate = collate
        self._pick = pick

    def __call__(self, rows: Sequence[int]) -> Any:
        items = self._items(rows)
        if self._pick is not None and not isinstance(items, _Failure):
            try:
                items = [self._pick(item) for item in items]
            except (KeyError, TypeError) as error:
                return _Failure(None, error)
        return items if isinstance(items, _Failure) else self._collate(items)

    def _items(self, rows: Sequence[int]) -> Any:
        many = getattr(self._dataset, "__getitems__", None)
        if many is not None:
            try:
                return many(list(rows))
            except Exception:
                pass  # read one by one, to know which
        items = []
        for index in rows:
            item = _guarded(self._dataset, index)
            if isinstance(item, _Failure):
                return item
            items.append(item)
        return items


def _guarded(dataset: Any, index: int) -> Any:
    """Return an item, or a failure in place of one that cannot be read."""
    try:
        return dataset[index]
    except Exception as error:
        return _Failure(index, error)


class _Pick:
    """Makes a pair of inputs and label of an item that is a mapping."""

    def __init__(self, inputs: str | Sequence[str], label: str | None) -> None:
        self._inputs = inputs
        self._label = label

    def __call__(self, item: Any) -> Any:
        if isinstance(self._inputs, str):
            inputs = item[self._inputs]
        else:
            inputs = {name: item[name] for name in self._inputs}
        return inputs if self._label is None else (inputs, item[self._label])


class _Collate:
    """The collation; it makes a tuple of pairs, as tensors do."""

    def __init__(self, collate: Callable[[list[Any]], Batch] | None) -> None:
        self._collate = collate or torch_default_collate
        self._hint = "" if collate is not None else _COLLATE_HINT

    def __call__(self, items: list[Any]) -> Batch:
        try:
            batch = self._collate(items)
        except Exception as error:
            return _Failure(None, error, self._hint)
        return tuple(batch) if type(batch) is list and type(items[0]) is tuple else batch


def _stream(rows: Tensor, batch_size: int, drop_last: bool, key: Key | None) -> Stream:
    indices = rows.tolist()
    stop = len(indices) - len(indices) % batch_size if drop_last else len(indices)
    batches = [indices[i : i + batch_size] for i in range(0, stop, batch_size)]
    return Stream(batches, _worker_seed(key))


def column_of(dataset: Any, name: str) -> np.ndarray:
    """Return one entry of every item of a dataset whose items are mappings.

    Datasets with columns, such as those of Hugging Face, are not read item by item.

    Raises:
        DataError: There is no such entry.

    Example:
        >>> column_of([{"site": "a"}, {"site": "b"}], "site").tolist()
        ['a', 'b']
    """
    if isinstance(dataset, Subset):
        return column_of(dataset.dataset, name)[list(dataset.indices)]
    if isinstance(dataset, ConcatDataset):
        return np.concatenate([column_of(part, name) for part in dataset.datasets])
    known = getattr(dataset, "column_names", None)
    if known is None:
        first = dataset[0] if len(dataset) else {}
        known = list(first) if isinstance(first, Mapping) else []
        if name in known:
            return np.asarray([_number(dataset[index][name]) for index in range(len(dataset))])
    elif name in known:
        return np.asarray(dataset.with_format("numpy")[name][:])
    if not known:
        raise DataError(
            f"{name!r}: the items of {type(dataset).__name__} have no names; pass the values "
            "themselves, one per example"
        )
    raise DataError(
        f"{name!r} is not an entry of the items, which have {', '.join(map(str, known))}."
        f"{did_you_mean(name, map(str, known))}"
    )


def _number(value: Any) -> Any:
    return value.item() if isinstance(value, Tensor) and not value.ndim else value


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
    seed = 0 if key is None else int(key.sequence().generate_state(2, np.uint64)[1] >> 1)
    # the number that a DataLoader with a generator of this seed gives its processes
    generator = torch.Generator().manual_seed(seed)
    return int(torch.empty((), dtype=torch.int64).random_(generator=generator))


def _described(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
