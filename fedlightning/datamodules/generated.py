"""Clients whose examples are made, or fetched, on demand."""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedlightning.core.batches import Split, check_split
from fedlightning.core.seeding import Key, default_seed
from fedlightning.core.tracebacks import place_of
from fedlightning.core.validation import check_integer
from fedlightning.datamodules.base import FederatedDataModule
from fedlightning.datamodules.checks import fault_in
from fedlightning.datamodules.client_data import ClientData
from fedlightning.datamodules.examples import TensorExamples
from fedlightning.datamodules.pooled import sample_name
from fedlightning.errors import ConfigError, DataError, FederationError
from fedlightning.storage.files import write_atomically
from fedlightning.storage.run_layout import PARTITION

__all__ = ["GeneratedClients"]

Size = int | Callable[[int], int] | None


class GeneratedClients(FederatedDataModule):
    """A client's examples are a function of its id, called when they are needed.

    For populations too large for a pool in memory: a million clients cost as much as a hundred,
    since nothing is made, kept or checked for clients that are not chosen. The function may compute
    the examples, or read them from files or a database. Inputs in float64, NumPy's default, reach a
    module without float64 parameters in torch's default dtype.

    Args:
        examples: Called as ``examples(client, split)`` with the split ``"train"`` or ``"test"``; it
            returns ``(inputs, labels)``, arrays or tensors, or the inputs alone. It must return the
            same examples each time.
        num_clients: Number of clients.
        num_train: Training examples per client: a number, or a function of the client id. None
            counts what ``examples`` returns; with several workers each of them then makes the
            examples of the whole cohort.
        num_test: Test examples likewise; 0 for none.
        num_classes: Number of classes; 0 for data without classes.
        cache_size: Number of pairs of client and split whose examples are cached.
        kwargs: ``batch_size``, ``val_fraction``, ...: see :class:`FederatedDataModule`. There is no
            partition: ``examples`` decides what each client has.

    Raises:
        ConfigError: An argument cannot work with any data.

    Example:
        >>> def examples(client, split):
        ...     rng = np.random.default_rng([client, split == "test"])
        ...     return rng.random((10, 4), np.float32), rng.integers(3, size=10)
        >>> data = GeneratedClients(examples, num_clients=1_000_000, num_train=10, num_test=10)
        >>> data.setup()
        >>> [inputs.shape for inputs, labels in data.batches(999_999, "test")]
        [torch.Size([10, 4])]
    """

    narrows_inputs = True

    def __init__(
        self,
        examples: Callable[[int, str], Any],
        num_clients: int,
        num_train: int | Callable[[int], int] | None = None,
        num_test: int | Callable[[int], int] | None = None,
        num_classes: int = 0,
        cache_size: int = 64,
        **kwargs: Any,
    ) -> None:
        if "partition" in kwargs:
            raise ConfigError("partition follows from examples(client, split); leave it out")
        super().__init__(num_clients=num_clients, partition=None, **kwargs)
        if not callable(examples):
            raise ConfigError(f"examples must be a function of client and split, got {examples!r}")
        self._examples = examples
        least = self.batch_size if self.drop_last else 1
        self.num_train = _size("num_train", num_train, at_least=least)
        self.num_test = _size("num_test", num_test, at_least=0)
        self.num_classes = check_integer("num_classes", num_classes, at_least=0)
        self.cache_size = check_integer("cache_size", cache_size, at_least=1)

    def load(self) -> ClientData:
        """Make the first client's examples, so that a failing function is found at once."""
        return _Generated(self)


class _Generated(ClientData):
    """The cached examples of some clients, and how to make the others'."""

    def __init__(self, settings: GeneratedClients) -> None:
        self.num_clients = settings.num_clients
        self.num_classes = settings.num_classes
        self._make = settings._examples
        self._name = getattr(self._make, "__qualname__", type(self._make).__name__)
        self.rule = f"made by {self._name}"
        self._sizes: dict[str, Size] = {"train": settings.num_train, "test": settings.num_test}
        self._least = settings.batch_size if settings.drop_last else 1
        self._held_out = settings.val_fraction
        self._checks_examples = settings.check_data
        self._key = Key(default_seed(settings.seed), "partition", round=1)
        self._cache_size = settings.cache_size
        self._pools: OrderedDict[tuple[int, str], TensorExamples] = OrderedDict()
        self._digest = self._digest_of(self.pool(settings.only_client or 0, "train"))

    def size(self, client: int, split: Split) -> int:
        if split == "test":
            return self._count(client, "test")
        whole = self._count(client, "train")
        held_out = _held_out(self._held_out, whole)
        return held_out if split == "val" else whole - held_out

    def indices(self, client: int, split: Split) -> np.ndarray:
        number = self._count(client, _source(split))
        held_out = 0 if split == "test" else _held_out(self._held_out, number)
        if not held_out:
            return np.arange(0 if split == "val" else number)
        order = self._key.at(client=client).numpy().permutation(number)
        chosen: np.ndarray = np.sort(order[:held_out] if split == "val" else order[held_out:])
        return chosen

    def pool(self, client: int, split: Split) -> TensorExamples:
        key = client, _source(split)
        if (pool := self._pools.pop(key, None)) is None:
            pool = self._checked(*key)
        self._pools[key] = pool
        if len(self._pools) > self._cache_size:
            self._pools.popitem(last=False)
        return pool

    def digest(self) -> str:
        return self._digest

    def summary(self) -> str:
        return f"{self.num_clients} clients, {self.rule}\ndigest: {self._digest[:12]}"

    def write(self, folder: Path, dataset: str, names: Sequence[str] | None = None) -> None:
        content = {
            "version": 1,
            "listed": False,
            "dataset": dataset,
            "partition": self.rule,
            "seed": self._key.seed,
            "num_clients": self.num_clients,
            "digest": self._digest,
        }
        write_atomically(folder / PARTITION, (json.dumps(content) + "\n").encode())

    def _count(self, client: int, source: str) -> int:
        if not 0 <= client < self.num_clients:
            raise ConfigError(f"client must be in [0, {self.num_clients}), got {client}")
        size = self._sizes[source]
        if size is None:
            return len(self.pool(client, source))
        return size if isinstance(size, int) else self._size_from(size, client, source)

    def _size_from(self, size: Callable[[int], int], client: int, source: str) -> int:
        """Return a client's number of examples from the user's function."""
        least = self._least if source == "train" else 0
        try:
            number = size(client)
        except Exception as error:
            raise FederationError(
                f"client {client}: num_{source}({client}) raised {type(error).__name__}: "
                f"{error}{place_of(error)}"
            ) from error
        try:
            return check_integer(f"num_{source}({client})", number, at_least=least)
        except ConfigError as error:
            raise DataError(f"client {client}: {error}") from None

    def _checked(self, client: int, source: Any) -> TensorExamples:
        """Make one client's examples; refuse unusable ones."""
        if not 0 <= client < self.num_clients:
            raise ConfigError(f"client must be in [0, {self.num_clients}), got {client}")
        call = f"client {client}: {self._name}({client}, {source!r})"
        try:
            made = self._make(client, source)
        except Exception as error:
            raise FederationError(
                f"{call} raised {type(error).__name__}: {error}{place_of(error)}"
            ) from error
        pair = made if isinstance(made, (tuple, list)) else (made,)
        if len(pair) > 2:
            raise DataError(f"{call} must return (inputs, labels), got {len(pair)} values")
        try:
            pool = TensorExamples(*pair)
        except DataError as error:
            raise DataError(f"{call}: {error}") from None
        told, least = self._sizes[source], self._least if source == "train" else 0
        expected = len(pool) if told is None else self._count(client, source)
        if len(pool) != expected:
            raise DataError(f"{call} returned {len(pool)} examples, num_{source} says {expected}")
        if len(pool) < least:
            raise DataError(f"{call} returned {len(pool)} examples, at least {least} are needed")
        if not self._checks_examples:
            return pool
        fault = fault_in(pool, np.arange(len(pool)), source, self.num_classes)
        if fault is not None:
            raise fault.error(f"{sample_name(client, source, fault.row)}: {fault.text}")
        return pool

    def _digest_of(self, first: TensorExamples) -> str:
        sizes = [size if isinstance(size, int) else None for size in self._sizes.values()]
        seed = self._key.seed if self._held_out else None
        facts = [self.num_clients, *sizes, self._held_out, seed, list(first.inputs.shape)]
        content = hashlib.sha256(json.dumps(facts).encode())
        if first.labels is not None:
            content.update(np.ascontiguousarray(first.labels).tobytes())
        return content.hexdigest()


def _source(split: str) -> Any:
    check_split(split)
    return "test" if split == "test" else "train"


def _held_out(fraction: float, number: int) -> int:
    return max(min(round(fraction * number), number - 1), 0)


def _size(name: str, value: Size, at_least: int) -> Size:
    if value is None or callable(value):
        return value
    return check_integer(name, value, at_least=at_least)
