"""Your own datasets as a federation's data: one for all clients, or one per client."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    RandomSampler,
    SequentialSampler,
    default_collate,
)

from fedlightning.core.batches import Split
from fedlightning.core.validation import check_integer
from fedlightning.datamodules.base import FederatedDataModule
from fedlightning.datamodules.client_splits import ClientSplit, SplitWithin, split_of
from fedlightning.datamodules.dataset_examples import (
    DatasetExamples,
    Pairs,
    column_of,
    is_map_style,
)
from fedlightning.datamodules.examples import Examples, TensorExamples
from fedlightning.datamodules.index_lists import IndexLists
from fedlightning.datamodules.partitions.base import Assignment, Partition
from fedlightning.datamodules.partitions.natural import NaturalIds
from fedlightning.datamodules.structured import StructuredExamples, is_structured
from fedlightning.errors import ConfigError, DataError, did_you_mean

__all__ = ["ClientDatasets", "FederatedDataset", "owners_count", "partition_names"]

Collate = Callable[[list[Any]], Any]
_DEFAULT_CLIENTS = 100


class FederatedDataset(FederatedDataModule):
    """A map-style dataset, divided over clients; its items are read when they are visited.

    Inputs in float64, NumPy's default, reach a module without float64 parameters in torch's default
    dtype.

    Args:
        train: Training data.
        test: Test data; None takes a share of each client's, see ``split``.
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
        split: How each client's examples are divided into those to train on and to test on, where
            ``test`` is None (:class:`~fedlightning.datamodules.RandomSplit`, ``TimeSplit``,
            ``GroupSplit``); None means at random, a fifth to test on. Validation data follow it.
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
        test: Dataset | None = None,  # type: ignore[type-arg]
        train_labels: Sequence[int] | None = None,
        test_labels: Sequence[int] | None = None,
        num_classes: int | None = None,
        num_workers: int = 0,
        collate: Collate | None = None,
        label_key: str | None = None,
        input_key: str | list[str] | None = None,
        split: ClientSplit | None = None,
        **kwargs: Any,
    ) -> None:
        partition = kwargs.get("partition")
        if isinstance(partition, NaturalIds):
            self.client_names = partition_names(partition, train)
            kwargs["num_clients"] = owners_count(self.client_names, kwargs)
        super().__init__(**kwargs)
        self.client_split = split_of(test, split)
        self._sources = (train, train_labels), (test, test_labels)
        self.num_workers = check_integer("num_workers", num_workers, at_least=0)
        self.collate = collate
        self.label_key = label_key
        self.input_key = input_key
        if num_classes is not None:
            self.num_classes = check_integer("num_classes", num_classes, at_least=1)

    def load(self) -> tuple[Examples, Examples]:
        """Find the labels of both datasets."""
        pools = [
            DatasetExamples(
                dataset, labels, self.num_workers, self.collate, self.label_key, self.input_key
            )
            for dataset, labels in self._sources
            if dataset is not None
        ]
        if len(pools) == 1:
            assert self.client_split is not None
            self.partition = SplitWithin(self.partition, self.client_split)
        return pools[0], pools[-1]


def partition_names(partition: NaturalIds, train: Any) -> tuple[str, ...]:
    """Return the names of the clients among whom a partition by owner divides a dataset."""
    if not isinstance(partition.ids, str):
        return partition.names
    owners = column_of(train, partition.ids)
    return NaturalIds(owners, min_samples=partition.min_samples).names


def owners_count(names: Sequence[str], given: Mapping[str, Any]) -> int:
    """Return the number of clients, which follows from a partition by owner.

    Args:
        names: The clients' names.
        given: The data module's other arguments; a command line hands the default on.

    Raises:
        ConfigError: Another number is given.
    """
    wanted = given.get("num_clients", _DEFAULT_CLIENTS)
    if wanted not in (_DEFAULT_CLIENTS, len(names)):
        raise ConfigError(
            f"num_clients={wanted}: the partition is by owner, and there are {len(names)}; leave "
            "it out"
        )
    return len(names)


class ClientDatasets(FederatedDataModule):
    """Data that is already stored client by client: the partition is given.

    Messages number samples within each client; ``indices`` numbers them through all clients, one
    after the other. Inputs in float64, NumPy's default, reach a module without float64 parameters
    in torch's default dtype.

    Args:
        train: Training data of each client: a list of them, or a mapping from the clients' names.
            Those of a client are a map-style dataset, a pair ``(inputs, labels)`` of arrays or
            tensors, of which either may be a mapping or a tuple of such, arrays by name (with
            ``input_key``, ``label_key``), or a ``DataLoader``, whose dataset, collation, batch size
            and ``drop_last`` are taken.
        test: Test data of each client likewise; they may be empty. None takes a share of each
            client's training data, see ``split``.
        num_classes: Number of classes; None counts them.
        num_workers: Processes that read datasets ahead, shared by all clients and kept for the run.
        collate: Makes a batch of a list of items, e.g. by padding
            (:class:`~fedlightning.datamodules.Pad`); torch's default collation if None.
        label_key: Of items that are mappings, the entry with the label.
        input_key: Of items that are mappings, the entry that the module gets as inputs, or several,
            which stay a mapping: a batch is then ``(inputs, labels)``.
        split: How each client's examples are divided where ``test`` is None; see
            :class:`FederatedDataset`.
        kwargs: ``batch_size``, ``val_fraction``, ...: see :class:`FederatedDataModule`. The number
            of clients follows from ``train``, and the partition is given.

    Raises:
        ConfigError: ``train`` or ``test`` is neither a list nor a mapping, or they differ in their
            clients.

    Example:
        >>> pairs = [(torch.rand(n, 4), torch.arange(n) % 2) for n in (3, 5)]
        >>> data = ClientDatasets(train=pairs, test=pairs)
        >>> data.setup()
        >>> [data.num_examples(client) for client in range(data.num_clients)]
        [3, 5]
        >>> from fedlightning.datamodules import RandomSplit
        >>> named = ClientDatasets({"charite": pairs[0], "mayo": pairs[1]}, split=RandomSplit(0.2))
        >>> named.setup()
        >>> named.client_names, named.num_examples(1, "train"), named.num_examples(1, "test")
        (('charite', 'mayo'), 4, 1)
    """

    narrows_inputs = True

    def __init__(
        self,
        train: Sequence[Any] | dict[str, Any],
        test: Sequence[Any] | dict[str, Any] | None = None,
        num_classes: int | None = None,
        num_workers: int = 0,
        collate: Collate | None = None,
        label_key: str | None = None,
        input_key: str | list[str] | None = None,
        split: ClientSplit | None = None,
        **kwargs: Any,
    ) -> None:
        for name in ("num_clients", "partition"):
            if name in kwargs:
                raise ConfigError(
                    f"{name} follows from train, one dataset per client; leave it out"
                )
        trained, tested, self.client_names = _in_order(train, test)
        if not trained or (tested is not None and len(trained) != len(tested)):
            raise ConfigError(
                "train and test must hold one dataset per client, got "
                f"{len(trained)} and {len(tested or ())}"
            )
        loaders = [part for part in [*trained, *(tested or ())] if isinstance(part, DataLoader)]
        if loaders:
            kwargs, collate = _as_loaded(loaders, kwargs, collate)
            if any(part.drop_last for part in trained if isinstance(part, DataLoader)):
                kwargs = {"drop_last": True, **kwargs}
        super().__init__(num_clients=len(trained), partition=None, **kwargs)
        self._sources = [trained] if tested is None else [trained, tested]
        self.client_split = split_of(tested, split)
        self.label_key = label_key
        self.input_key = input_key
        self.num_workers = check_integer("num_workers", num_workers, at_least=0)
        self.collate = collate
        if num_classes is not None:
            self.num_classes = check_integer("num_classes", num_classes, at_least=1)

    def load(self) -> tuple[Examples, Examples]:
        """Put the clients' data one after the other."""
        pools = [self._concatenated(parts) for parts in self._sources]
        (train, train_sizes), (test, test_sizes) = pools[0], pools[-1]
        self._first = {"train": _starts(train_sizes), "test": _starts(test_sizes)}
        if len(pools) == 1:
            assert self.client_split is not None
            self.partition = SplitWithin(
                _AsGiven(train_sizes, [0] * len(train_sizes)), self.client_split
            )
        else:
            self.partition = _AsGiven(train_sizes, test_sizes)
        return train, test

    def sample_number(self, client: int, split: Split, index: int) -> int:
        """Return the number of an example within its client's own data."""
        return index - self._first["test" if split == "test" else "train"][client]

    def _concatenated(self, parts: Sequence[Any]) -> tuple[Examples, list[int]]:
        """Return all clients' examples as one pool, and the number of each client's."""
        parts = [part.dataset if isinstance(part, DataLoader) else part for part in parts]
        parts = [
            _pair_of(client, part, self.input_key, self.label_key)
            if isinstance(part, Mapping)
            else part
            for client, part in enumerate(parts)
        ]
        pairs = all(_is_pair(part) for part in parts)
        if self.collate is None and pairs:
            if any(is_structured(each) for part in parts for each in part):
                several = [
                    _named(client, StructuredExamples, *part, self.label_key)
                    for client, part in enumerate(parts)
                ]
                joined = StructuredExamples.joined(several, self.label_key)
                return joined, [len(pool) for pool in several]
            pools = [_named(client, TensorExamples, *part) for client, part in enumerate(parts)]
            return _joined(pools), [len(pool) for pool in pools]
        datasets = [
            _named(client, Pairs, part, self.collate is not None, self.label_key)
            if _is_pair(part)
            else _map_style(client, part)
            for client, part in enumerate(parts)
        ]
        keys = (None, None) if pairs else (self.label_key, self.input_key)
        pool = DatasetExamples(_Chain(datasets), None, self.num_workers, self.collate, *keys)
        return pool, [len(dataset) for dataset in datasets]


class _Chain(ConcatDataset[Any]):
    """Datasets one after the other, of which many items can be read at once."""

    def __getitems__(self, rows: list[int]) -> list[Any]:
        if not rows:
            return []
        at = bisect_right(self.cumulative_sizes, rows[0])
        first = self.cumulative_sizes[at - 1] if at else 0
        own = [row - first for row in rows]  # a batch is one client's
        many = getattr(self.datasets[at], "__getitems__", None)
        if many is None or not all(0 <= row < len(self.datasets[at]) for row in own):  # type: ignore[arg-type]
            return [self[row] for row in rows]
        items: list[Any] = many(own)
        return items


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


def _in_order(train: Any, test: Any) -> tuple[list[Any], list[Any] | None, tuple[str, ...] | None]:
    """Return the clients' training and test data in one order, and their names, if any."""
    if not isinstance(train, Mapping):
        _check_list("train", train)
        if isinstance(test, Mapping):
            raise ConfigError("test has the clients' names, train has none; pass two mappings")
        if test is not None:
            _check_list("test", test)
        return list(train), None if test is None else list(test), None
    names = tuple(map(str, train))
    if any(not name.strip() for name in names):
        raise ConfigError("train has a client whose name is blank; name it")
    if twice := {name for name in names if names.count(name) > 1}:
        raise ConfigError(f"train has two clients of the name {min(twice)!r}; rename one")
    if test is None:
        return list(train.values()), None, names
    if not isinstance(test, Mapping) or set(test) != set(train):
        apart = set(test) ^ set(train) if isinstance(test, Mapping) else ()
        few = ", ".join(sorted(map(str, apart))[:3])
        raise ConfigError(
            "train is a mapping from names, so test must be one from the same names"
            + (f"; only one of them has {few}" if few else "")
        )
    return list(train.values()), [test[name] for name in train], names


def _as_loaded(
    loaders: Sequence[DataLoader[Any]], kwargs: dict[str, Any], collate: Collate | None
) -> tuple[dict[str, Any], Collate | None]:
    """Return the batch size and the collation that loaders have in common."""
    for loader in loaders:
        if not isinstance(loader.sampler, (RandomSampler, SequentialSampler)):
            raise ConfigError(
                f"a DataLoader has a {type(loader.sampler).__name__}, but the order of examples "
                "follows from the run's seed: pass its dataset; epoch_order() of a subclass may "
                "set another order"
            )
    sizes = {loader.batch_size for loader in loaders}
    if "batch_size" not in kwargs:
        if len(sizes) > 1 or None in sizes:
            raise ConfigError(f"the DataLoaders differ in batch_size ({sizes}); pass batch_size")
        kwargs = {**kwargs, "batch_size": sizes.pop()}
    own = {loader.collate_fn for loader in loaders} - {default_collate}
    if collate is None and own:
        if len(own) > 1 or any(loader.collate_fn is default_collate for loader in loaders):
            raise ConfigError("the DataLoaders differ in their collate_fn; pass collate")
        collate = own.pop()
    return kwargs, collate


def _check_list(name: str, given: Any) -> None:
    if isinstance(given, (str, bytes)) or not hasattr(given, "__len__"):
        raise ConfigError(
            f"{name} must be a list with one dataset per client, got {type(given).__name__}"
        )


def _named(client: int, make: Callable[..., Any], *given: Any) -> Any:
    """Return what is made of a client's data; an error says whose they are."""
    try:
        return make(*given)
    except DataError as error:
        raise DataError(f"client {client}: {error}") from None


def _pair_of(
    client: int, part: Mapping[str, Any], input_key: Any, label_key: str | None
) -> tuple[Any, Any]:
    """Return inputs and labels of a client whose data are arrays by name."""
    names = ", ".join(map(str, part))
    if input_key is None and label_key is None:
        raise DataError(
            f"client {client}: a mapping with {names} is neither a map-style dataset nor a pair "
            "(inputs, labels): name data.input_key and data.label_key"
        )
    rest = [name for name in part if name != label_key]
    chosen = input_key if input_key is not None else rest[0] if len(rest) == 1 else rest
    for name in [*([chosen] if isinstance(chosen, str) else chosen), label_key]:
        if name is not None and name not in part:
            raise DataError(
                f"client {client}: {name!r} is not among its arrays, which are {names}."
                f"{did_you_mean(str(name), map(str, part))}"
            )
    inputs = part[chosen] if isinstance(chosen, str) else {name: part[name] for name in chosen}
    return inputs, None if label_key is None else part[label_key]


def _map_style(client: int, part: Any) -> Any:
    if hasattr(part, "columns"):
        raise DataError(
            f"client {client}: a {type(part).__name__} is a table: put all clients' rows into one, "
            "with a column that says whose they are, and pass it to FederatedTable"
        )
    if not is_map_style(part):
        raise DataError(
            f"client {client}: {type(part).__name__} is neither a map-style dataset nor "
            f"a pair (inputs, labels)"
        )
    return part


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
        if pool.labels is not None and first.labels is not None:
            kinds = [labels.dtype.kind == "i" for labels in (pool.labels, first.labels)]
            if kinds[0] != kinds[1] and len(pool) and len(first):
                raise DataError(
                    f"client {client}: labels are {pool.labels.dtype}, but those of client 0 are "
                    f"{first.labels.dtype}: whole numbers are classes, others are targets of a "
                    "regression"
                )
    labels = [pool.labels for pool in pools if pool.labels is not None]
    return TensorExamples(
        torch.cat([pool.inputs for pool in pools]), np.concatenate(labels) if labels else None
    )


def _is_pair(part: Any) -> bool:
    if isinstance(part, list) and all(isinstance(each, (tuple, Mapping)) for each in part):
        return False  # a list of items
    return isinstance(part, (tuple, list)) and len(part) == 2
