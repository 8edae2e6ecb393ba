"""One's own datasets as a federation's data: one for all clients, or one for each."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch.utils.data import ConcatDataset, Dataset, TensorDataset

from fedlightning.core.batches import Split
from fedlightning.core.validation import check_integer
from fedlightning.datamodules.base import FederatedDataModule
from fedlightning.datamodules.dataset_examples import DatasetExamples
from fedlightning.datamodules.examples import Examples, TensorExamples
from fedlightning.datamodules.index_lists import IndexLists
from fedlightning.datamodules.partitions.base import Assignment, Partition
from fedlightning.errors import ConfigError, DataError

__all__ = ["ClientDatasets", "FederatedDataset"]


class FederatedDataset(FederatedDataModule):
    """A map-style dataset, divided over clients; its items are read when they are visited.

    Args:
        train: Training data.
        test: Test data.
        train_labels: One label an example, for the partition; None finds them, see
            :class:`DatasetExamples`.
        test_labels: Likewise of the test data.
        num_classes: Number of classes; None counts them.
        num_workers: Processes that read ahead, started for each local epoch.
        kwargs: ``num_clients``, ``batch_size``, ``partition``, ...: see
            :class:`FederatedDataModule`.

    Raises:
        ConfigError: ``num_classes`` or ``num_workers`` is out of range.

    Example:
        >>> pairs = TensorDataset(torch.rand(60, 4), torch.arange(60) % 3)
        >>> data = FederatedDataset(pairs, pairs, num_clients=6, seed=0)
        >>> data.setup()
        >>> data.num_classes, data.num_examples(client=5)
        (3, 10)
    """

    def __init__(
        self,
        train: Dataset,  # type: ignore[type-arg]  # jsonargparse takes no Dataset[Any]
        test: Dataset,  # type: ignore[type-arg]
        train_labels: Sequence[int] | None = None,
        test_labels: Sequence[int] | None = None,
        num_classes: int | None = None,
        num_workers: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self._sources = (train, train_labels), (test, test_labels)
        self.num_workers = check_integer("num_workers", num_workers, at_least=0)
        if num_classes is not None:
            self.num_classes = check_integer("num_classes", num_classes, at_least=1)

    def load(self) -> tuple[Examples, Examples]:
        """Find the labels of both datasets."""
        train, test = (
            DatasetExamples(dataset, labels, self.num_workers) for dataset, labels in self._sources
        )
        return train, test


class ClientDatasets(FederatedDataModule):
    """Data that already lie apart, client by client: there is no partition to choose.

    Samples are numbered within each client in messages, and through all clients, one after the
    other, in ``indices``.

    Args:
        train: Training data of each client: a map-style dataset, or a pair ``(inputs, labels)`` of
            arrays or tensors.
        test: Test data of each client likewise; they may be empty.
        num_classes: Number of classes; None counts them.
        num_workers: Processes that read datasets ahead, started for each local epoch.
        batch_size: Examples a batch in training.
        val_fraction: Share of each client's training examples that is held out for validation.
        eval_batch_size: Examples a batch in evaluation.
        drop_last: Leave a client's last training batch out if it is shorter.
        seed: Seed of the held-out examples; None takes that of the run.
        eval_clients: How many clients are evaluated, see :class:`FederatedDataModule`.
        held_out_clients: Clients that never train, see :class:`FederatedDataModule`.
        check_data: Whether the examples are checked, see :class:`FederatedDataModule`.

    Raises:
        ConfigError: No client, or train and test of another number of clients.

    Example:
        >>> pairs = [(torch.rand(n, 4), torch.arange(n) % 2) for n in (3, 5)]
        >>> data = ClientDatasets(train=pairs, test=pairs)
        >>> data.setup()
        >>> [data.num_examples(client) for client in range(data.num_clients)]
        [3, 5]
    """

    def __init__(
        self,
        train: Sequence[Any],
        test: Sequence[Any],
        num_classes: int | None = None,
        num_workers: int = 0,
        batch_size: int = 50,
        val_fraction: float = 0.0,
        eval_batch_size: int = 128,
        drop_last: bool = False,
        seed: int | None = None,
        eval_clients: int | None = None,
        held_out_clients: int | float = 0,
        check_data: bool = True,
    ) -> None:
        if not train or len(train) != len(test):
            raise ConfigError(
                f"train and test must hold one dataset for each client, got {len(train)} and "
                f"{len(test)}"
            )
        super().__init__(
            num_clients=len(train),
            batch_size=batch_size,
            val_fraction=val_fraction,
            eval_batch_size=eval_batch_size,
            drop_last=drop_last,
            seed=seed,
            eval_clients=eval_clients,
            held_out_clients=held_out_clients,
            check_data=check_data,
        )
        self._sources = train, test
        self.num_workers = check_integer("num_workers", num_workers, at_least=0)
        if num_classes is not None:
            self.num_classes = check_integer("num_classes", num_classes, at_least=1)

    def load(self) -> tuple[Examples, Examples]:
        """Put the clients' data one after the other."""
        (train, train_sizes), (test, test_sizes) = (
            _pool(parts, self.num_workers) for parts in self._sources
        )
        self.partition = _AsGiven(train_sizes, test_sizes)
        self._first = {"train": _starts(train_sizes), "test": _starts(test_sizes)}
        return train, test

    def sample_number(self, client: int, split: Split, index: int) -> int:
        """Return the number of an example within its client's own data."""
        return index - self._first["test" if split == "test" else "train"][client]


class _AsGiven(Partition):
    """Every client has what it came with."""

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


def _pool(parts: Sequence[Any], num_workers: int) -> tuple[Examples, list[int]]:
    """Return all clients' examples as one pool, and how many are each client's."""
    if all(_is_pair(part) for part in parts):
        pools = [TensorExamples(*part) for part in parts]
        return _joined(pools), [len(pool) for pool in pools]
    datasets = [TensorDataset(*map(_tensor, part)) if _is_pair(part) else part for part in parts]
    for client, dataset in enumerate(datasets):
        if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
            raise DataError(
                f"client {client}: {type(dataset).__name__} is neither a map-style dataset nor "
                f"a pair (inputs, labels)"
            )
    joined = DatasetExamples(ConcatDataset(datasets), num_workers=num_workers)
    return joined, [len(dataset) for dataset in datasets]


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


def _tensor(values: Any) -> torch.Tensor:
    return TensorExamples(values).inputs
