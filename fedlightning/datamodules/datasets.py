"""Your own datasets as a federation's data: one for all clients, or one per client."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch.utils.data import ConcatDataset, Dataset

from fedlightning.core.batches import Split
from fedlightning.core.validation import check_integer
from fedlightning.datamodules.base import FederatedDataModule
from fedlightning.datamodules.dataset_examples import DatasetExamples, is_map_style
from fedlightning.datamodules.examples import Examples, TensorExamples, label_array
from fedlightning.datamodules.index_lists import IndexLists
from fedlightning.datamodules.partitions.base import Assignment, Partition
from fedlightning.errors import ConfigError, DataError

__all__ = ["ClientDatasets", "FederatedDataset"]

Collate = Callable[[list[Any]], Any]


class FederatedDataset(FederatedDataModule):
    """A map-style dataset, divided over clients; its items are read when they are visited.

    Inputs in float64, NumPy's default, reach a module without float64 parameters in torch's default
    dtype.

    Args:
        train: Training data.
        test: Test data.
        train_labels: One label per example, for the partition; None finds them, see
            :class:`DatasetExamples`.
        test_labels: Likewise for the test data.
        num_classes: Number of classes; None counts them.
        num_workers: Processes that read ahead, shared by all clients and kept for the run.
        collate: Makes a batch of a list of items, e.g. by padding
            (:class:`~fedlightning.datamodules.Pad`); torch's default collation if None.
        label_key: Of items that are mappings, the entry with the label, for the partition.
        input_key: Of items that are mappings, the entry that the module gets as inputs, or several,
            which stay a mapping: a batch is then ``(inputs, labels)``.
        kwargs: ``num_clients``, ``batch_size``, ``partition``, ...: see
            :class:`FederatedDataModule`.

    Raises:
        ConfigError: ``num_classes`` or ``num_workers`` is out of range.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> pairs = TensorDataset(torch.rand(60, 4), torch.arange(60) % 3)
        >>> data = FederatedDataset(pairs, pairs, num_clients=6, seed=0)
        >>> data.setup()
        >>> data.num_classes, data.num_examples(client=5)
        (3, 10)
    """

    narrows_inputs = True

    def __init__(
        self,
        train: Dataset,  # type: ignore[type-arg]  # jsonargparse takes no Dataset[Any]
        test: Dataset,  # type: ignore[type-arg]
        train_labels: Sequence[int] | None = None,
        test_labels: Sequence[int] | None = None,
        num_classes: int | None = None,
        num_workers: int = 0,
        collate: Collate | None = None,
        label_key: str | None = None,
        input_key: str | list[str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self._sources = (train, train_labels), (test, test_labels)
        self.num_workers = check_integer("num_workers", num_workers, at_least=0)
        self.collate = collate
        self.label_key = label_key
        self.input_key = input_key
        if num_classes is not None:
            self.num_classes = check_integer("num_classes", num_classes, at_least=1)

    def load(self) -> tuple[Examples, Examples]:
        """Find the labels of both datasets."""
        train, test = (
            DatasetExamples(
                dataset, labels, self.num_workers, self.collate, self.label_key, self.input_key
            )
            for dataset, labels in self._sources
        )
        return train, test


class ClientDatasets(FederatedDataModule):
    """Data that is already stored client by client: the partition is given.

    Messages number samples within each client; ``indices`` numbers them through all clients, one
    after the other. Inputs in float64, NumPy's default, reach a module without float64 parameters
    in torch's default dtype.

    Args:
        train: Training data of each client: a map-style dataset, or a pair ``(inputs, labels)`` of
            arrays or tensors.
        test: Test data of each client likewise; it may be empty.
        num_classes: Number of classes; None counts them.
        num_workers: Processes that read datasets ahead, started for each local epoch.
        collate: Makes a batch of a list of items, e.g. by padding; torch's default collation if
            None.
        kwargs: ``batch_size``, ``val_fraction``, ...: see :class:`FederatedDataModule`. The number
            of clients follows from ``train``, and the partition is given.

    Raises:
        ConfigError: ``train`` or ``test`` is not a list, or they differ in the number of clients.

    Example:
        >>> pairs = [(torch.rand(n, 4), torch.arange(n) % 2) for n in (3, 5)]
        >>> data = ClientDatasets(train=pairs, test=pairs)
        >>> data.setup()
        >>> [data.num_examples(client) for client in range(data.num_clients)]
        [3, 5]
    """

    narrows_inputs = True

    def __init__(
        self,
        train: Sequence[Any],
        test: Sequence[Any],
        num_classes: int | None = None,
        num_workers: int = 0,
        collate: Collate | None = None,
        **kwargs: Any,
    ) -> None:
        for name in ("num_clients", "partition"):
            if name in kwargs:
                raise ConfigError(
                    f"{name} follows from train, one dataset per client; leave it out"
                )
        _check_list("train", train)
        _check_list("test", test)
        if not train or len(train) != len(test):
            raise ConfigError(
                f"train and test must hold one dataset per client, got {len(train)} and {len(test)}"
            )
        super().__init__(num_clients=len(train), partition=None, **kwargs)
        self._sources = train, test
        self.num_workers = check_integer("num_workers", num_workers, at_least=0)
        self.collate = collate
        if num_classes is not None:
            self.num_classes = check_integer("num_classes", num_classes, at_least=1)

    def load(self) -> tuple[Examples, Examples]:
        """Put the clients' data one after the other."""
        pools = [self._concatenated(parts) for parts in self._sources]
        (train, train_sizes), (test, test_sizes) = pools
        self.partition = _AsGiven(train_sizes, test_sizes)
        self._first = {"train": _starts(train_sizes), "test": _starts(test_sizes)}
        return train, test

    def sample_number(self, client: int, split: Split, index: int) -> int:
        """Return the number of an example within its client's own data."""
        return index - self._first["test" if split == "test" else "train"][client]

    def _concatenated(self, parts: Sequence[Any]) -> tuple[Examples, list[int]]:
        """Return all clients' examples as one pool, and the number of each client's."""
        if self.collate is None and all(_is_pair(part) for part in parts):
            pools = [TensorExamples(*part) for part in parts]
            return _joined(pools), [len(pool) for pool in pools]
        datasets = [
            _Pairs(part, as_items=self.collate is not None)
            if _is_pair(part)
            else _map_style(client, part)
            for client, part in enumerate(parts)
        ]
        pool = DatasetExamples(
            ConcatDataset(datasets), num_workers=self.num_workers, collate=self.collate
        )
        return pool, [len(dataset) for dataset in datasets]


class _AsGiven(Partition):
    """Every client keeps the examples it was given."""

    needs_labels = False

    def __init__(self, train_sizes: list[int], test_sizes: list[int]) -> None:
        self._sizes = train_sizes, test_sizes

    def __repr__(self) -> str:
        return "as given"

    def assign(
        self,
        train_labels: np.ndarray,
        test_labels: np.ndarray,
        num_clients: int,
        num_classes: int,
        rng: np.random.Generator,
    ) -> Assignment:
        train, test = (IndexLists(np.arange(sum(sizes)), np.array(sizes)) for sizes in self._sizes)
        return Assignment(train=train, test=test)


def _starts(sizes: list[int]) -> list[int]:
    return [0, *accumulate(sizes)][:-1]


def _check_list(name: str, given: Any) -> None:
    if isinstance(given, Mapping):
        raise ConfigError(
            f"{name} must be a list with one dataset per client, got a {type(given).__name__}; "
            f"pass list({name}.values()): clients are numbered from 0 in that order"
        )
    if isinstance(given, (str, bytes)) or not hasattr(given, "__len__"):
        raise ConfigError(
            f"{name} must be a list with one dataset per client, got {type(given).__name__}"
        )


def _map_style(client: int, part: Any) -> Any:
    if not is_map_style(part):
        raise DataError(
            f"client {client}: {type(part).__name__} is neither a map-style dataset nor "
            f"a pair (inputs, labels)"
        )
    return part


class _Pairs(Dataset[Any]):
    """A client's ``(inputs, labels)`` as a dataset.

    Args:
        pair: Inputs, and labels or None, one of each per example.
        as_items: Whether inputs that make no array, such as sequences of several lengths, are kept
            as a list.
    """

    def __init__(self, pair: Any, as_items: bool) -> None:
        inputs, labels = pair
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
        if self.targets is None:
            return self.inputs[index]
        return self.inputs[index], self.targets[index]


def _joined(pools: list[TensorExamples]) -> TensorExamples:
    first = pools[0]
    for client, pool in enumerate(pools):
        if pool.inputs.shape[1:] != first.inputs.shape[1:]:
            raise DataError(
                f"client {client}: inputs of shape {tuple(pool.inputs.shape[1:])}, "
                f"but client 0 has {tuple(first.inputs.shape[1:])}"
            )
        if (pool.labels is None) != (first.labels is None):
            raise DataError(f"client {client} and client 0: one has labels, the other has none")
    labels = [pool.labels for pool in pools if pool.labels is not None]
    return TensorExamples(
        torch.cat([pool.inputs for pool in pools]), np.concatenate(labels) if labels else None
    )


def _is_pair(part: Any) -> bool:
    return isinstance(part, (tuple, list)) and len(part) == 2
