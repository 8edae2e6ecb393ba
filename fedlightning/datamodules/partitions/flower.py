"""The partitioners of Flower Datasets, as a partition."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from fedlightning.datamodules.dataset_examples import DatasetExamples
from fedlightning.datamodules.examples import Examples
from fedlightning.datamodules.index_lists import IndexLists
from fedlightning.datamodules.partitions.base import Assignment, Partition
from fedlightning.errors import ConfigError, DataError

__all__ = ["FlowerPartition"]

_INDEX = "__fedlightning_index"


class FlowerPartition(Partition):
    """Divides the data as a partitioner of ``flwr-datasets`` does (extra ``flwr-datasets``).

    The partitioner sees the examples' columns, where they are of a Hugging Face dataset, and the
    label under the name ``label`` (its ``partition_by``, as a rule).

    Args:
        partitioner: Such as ``flwr_datasets.partitioner.DirichletPartitioner(...)``, for the
            training data; its seed, not the data's, decides.
        test: Divides the test data; None means a copy of ``partitioner``, which draws anew where
            it draws by example.

    Raises:
        ConfigError: ``partitioner`` is not one, or ``flwr-datasets`` is not installed.
    """

    needs_labels = False

    def __init__(self, partitioner: Any, test: Any = None) -> None:
        try:
            from flwr_datasets.partitioner import Partitioner
        except ImportError:
            raise ConfigError(
                "FlowerPartition needs Flower Datasets: pip install 'fedlightning[flwr-datasets]'"
            ) from None
        for given in (partitioner, test):
            if given is not None and not isinstance(given, Partitioner):
                raise ConfigError(
                    f"partitioner must be one of flwr_datasets.partitioner, got {given!r}"
                )
        self.partitioner = partitioner
        self.test = test
        self._pools: tuple[Examples | None, Examples | None] = None, None

    def __repr__(self) -> str:
        return f"FlowerPartition({type(self.partitioner).__name__})"

    def bound(self, train: Examples, test: Examples) -> Partition:
        """Return the partition with these pools' columns."""
        bound = FlowerPartition(self.partitioner, self.test)
        bound._pools = train, test
        return bound

    def assign(
        self,
        train_labels: np.ndarray,
        test_labels: np.ndarray,
        num_clients: int,
        num_classes: int,
        rng: np.random.Generator,
    ) -> Assignment:
        """Ask the partitioner for every client's examples; see :meth:`Partition.assign`."""
        pools = self._pools
        copies = copy.deepcopy(self.partitioner), copy.deepcopy(self.test or self.partitioner)
        lists = []
        for pool, labels, partitioner in zip(
            pools, (train_labels, test_labels), copies, strict=True
        ):
            if not len(labels):
                lists.append(IndexLists.of([np.empty(0, np.int64)] * num_clients))
                continue
            partitioner.dataset = _table(pool, labels)
            if partitioner.num_partitions != num_clients:
                raise DataError(
                    f"{type(partitioner).__name__} makes {partitioner.num_partitions} partitions, "
                    f"num_clients is {num_clients}; set them alike"
                )
            parts = (partitioner.load_partition(client)[_INDEX] for client in range(num_clients))
            lists.append(IndexLists.of([np.asarray(part, np.int64) for part in parts]))
        return Assignment(train=lists[0], test=lists[1])


def _table(pool: Examples | None, labels: np.ndarray) -> Any:
    """Return the examples' columns, with their label and index, as a Hugging Face dataset."""
    import datasets

    own = pool.dataset if isinstance(pool, DatasetExamples) else None
    table = own if isinstance(own, datasets.Dataset) else datasets.Dataset.from_dict({})
    if not len(table.column_names):
        return datasets.Dataset.from_dict({_INDEX: np.arange(len(labels)), "label": labels})
    table = table.add_column(_INDEX, np.arange(len(labels)))
    return table if "label" in table.column_names else table.add_column("label", labels)
