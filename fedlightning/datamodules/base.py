"""The data module of a federation: it holds the clients' data and makes their batches."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from fedlightning.core.arguments import NamedArguments
from fedlightning.core.batches import SPLITS, Batch, Split, check_split
from fedlightning.core.client_names import naming_clients, resolve_clients
from fedlightning.core.seeding import Key, default_seed
from fedlightning.core.validation import check_instance, check_integer, check_number
from fedlightning.core.views import CENTRAL, HELD_OUT, EvaluationView
from fedlightning.datamodules.checks import check_batches
from fedlightning.datamodules.client_data import ClientData
from fedlightning.datamodules.client_roles import ClientRoles, check_held_out
from fedlightning.datamodules.client_splits import ClientSplit
from fedlightning.datamodules.examples import Examples, SampleError, TensorExamples
from fedlightning.datamodules.loaders import ClientLoader, PredictLoader, ViewLoader
from fedlightning.datamodules.own_splits import OwnSplits, owner
from fedlightning.datamodules.partitions.base import IID, Partition
from fedlightning.datamodules.pooled import PooledData, count_classes, prepare, sample_name
from fedlightning.errors import ConfigError, DataError, FederationError

__all__ = ["FederatedDataModule"]


class FederatedDataModule(NamedArguments, pl.LightningDataModule, ABC):
    """Holds the clients' data; a subclass implements :meth:`load`.

    Args:
        num_clients: Number of clients in the population; known before ``setup``.
        batch_size: Examples per batch in training.
        partition: How the examples are divided over the clients; :class:`IID` if None.
        val_fraction: Share of each client's training examples that is held out for validation.
        eval_batch_size: Examples per batch in evaluation. Models whose BatchNorm has no running
            statistics normalise with the batch, so their accuracy depends on it.
        drop_last: Drop a client's last training batch if it is shorter.
        seed: Seed of the partition and the held-out examples; None uses the run's.
        eval_clients: How many clients are evaluated, personalised and predicted for: a random
            sample, the same each time. None means all, or 1,000 of more than 10,000 clients, with
            a warning.
        held_out_clients: Clients that never train, but are evaluated and personalised like the
            others and reported apart, under ``held_out/``: an int is a number of clients, a float
            in [0, 1) a share. The seed decides which; the partition stays the same.
            ``eval_clients`` is then the size of a sample of each kind.
        check_data: Whether ``setup`` looks for labels outside the classes, non-finite numbers and
            items that cannot be read. With false a bad example is noticed, if at all, when a client
            trains on it. Set it to false where labels are excluded from the loss on purpose, as
            cross-entropy excludes -100.

    Attributes:
        num_classes: Number of classes, a class attribute or counted by ``setup``; 0 for data
            without classes.
        client_names: One name per client, by which messages, tables, figures and commands know it
            beside its id; ``None`` for clients that have none.
        only_client: The only client whose examples are on this machine, at a deployment's node;
            ``None`` means that all clients' are.

    Raises:
        ConfigError: An argument cannot work with any data.

    Example:
        >>> from fedlightning.datamodules import TensorExamples
        >>> class Mine(FederatedDataModule):
        ...     num_classes = 3
        ...     def load(self):
        ...         inputs, labels = torch.rand(90, 4), torch.arange(90) % 3
        ...         return TensorExamples(inputs, labels), TensorExamples(inputs[:30], labels[:30])
        >>> data = Mine(num_clients=6, batch_size=10, seed=0)
        >>> data.setup()
        >>> data.num_examples(client=0), data.num_examples(client=0, split="test")
        (15, 5)
        >>> [len(labels) for inputs, labels in data.batches(0, "train", key=Key(0, "fit"))]
        [10, 5]
    """

    num_classes: int
    client_names: Sequence[str] | None = None
    client_split: ClientSplit | None = None
    """How a client's own examples are divided, where the data come without test examples."""

    only_client: int | None = None
    narrows_inputs: ClassVar[bool] = False
    """Whether float64 inputs reach a module without float64 parameters in torch's default dtype."""

    def __init__(
        self,
        num_clients: int = 100,
        batch_size: int = 50,
        partition: Partition | None = None,
        val_fraction: float = 0.0,
        eval_batch_size: int = 128,
        drop_last: bool = False,
        seed: int | None = None,
        eval_clients: int | None = None,
        held_out_clients: int | float = 0,
        check_data: bool = True,
    ) -> None:
        super().__init__()
        self.num_clients = check_integer("num_clients", num_clients, at_least=1)
        self.batch_size = check_integer("batch_size", batch_size, at_least=1)
        self.partition = partition if partition is not None else IID()
        check_instance("partition", self.partition, Partition)
        self.val_fraction = float(check_number("val_fraction", val_fraction, at_least=0, below=1))
        self.eval_batch_size = check_integer("eval_batch_size", eval_batch_size, at_least=1)
        self.drop_last = drop_last
        self.seed = None if seed is None else check_integer("seed", seed, at_least=0)
        self.eval_clients = (
            None
            if eval_clients is None
            else check_integer("eval_clients", eval_clients, at_least=1)
        )
        self.held_out_clients = check_held_out(held_out_clients, self.num_clients)
        self.check_data = check_data

    @abstractmethod
    def load(self) -> tuple[Examples, Examples] | ClientData:
        """Return the pools of training and of test examples; called once.

        Return :class:`ClientData` instead for data that is stored client by client and has no list
        of all examples; the partition is then ignored.

        Raises:
            DataError: The data cannot be read.
        """

    def evaluation_views(self) -> list[EvaluationView]:
        """Return which clients are measured on which of their splits, and under which names.

        These are the clients that train on their own test data, the clients held out of training
        under ``held_out``, and the validation data of both. A subclass adds views of its own, whose
        metrics, tables and lines in summary and report then exist, too.

        Example:
            >>> from fedlightning.datamodules import ClientDatasets
            >>> class Shifted(ClientDatasets):
            ...     def evaluation_views(self):
            ...         ood = EvaluationView("ood", self.evaluated_clients, "ood")
            ...         return [*super().evaluation_views(), ood]
            ...
            ...     def split_examples(self, client, split):
            ...         ((inputs, labels),) = self.batches(client, "test")
            ...         return inputs + 2, labels
        """
        evaluated, held_out = self.evaluated_clients, set(self.held_out_ids.tolist())
        training = [c for c in evaluated if c not in held_out] if held_out else evaluated
        views = [EvaluationView("", training, population=len(self.training_clients))]
        if held_out:
            others = [client for client in evaluated if client in held_out]
            views.append(EvaluationView(HELD_OUT, others, population=len(held_out)))
        if self.val_fraction:
            views += [replace(view, split="val") for view in views]
        return views

    def split_examples(self, client: int, split: Split) -> Any:
        """Return a client's examples of a split beside ``train``, ``val`` and ``test``.

        For :meth:`evaluation_views` of a subclass. It is called when the examples are wanted, and
        must give the same ones each time.

        Args:
            client: Client id, or ``CENTRAL`` for data that belongs to no client.
            split: The split that a view names.

        Returns:
            :class:`Examples`, a pair of inputs and labels, or inputs alone.
        """
        if client != CENTRAL:
            check_split(split)
        raise ConfigError(
            f"{type(self).__name__} has no examples that belong to no client; its "
            "split_examples() can give some."
        )

    def transform_batch(self, batch: Batch, training: bool) -> Batch:
        """Turn a stored batch, already on its device, into what the module gets.

        The default returns it unchanged.

        Args:
            batch: ``(inputs, labels)``, or what the examples yield.
            training: Whether the batch is trained on. Random transforms, such as augmentation,
                belong here and draw from the global torch generators, which are seeded for the
                client and the round.
        """
        return batch

    @property
    def transforms_alike(self) -> bool:
        """Whether :meth:`transform_batch` gives the same result for an example every time.

        A subclass that overrides ``transform_batch`` may override this property to return true, if
        its transform is not random, treats each example by itself, and ignores ``training``. What a
        model computes from an example can then be cached.
        """
        return _method_of(self, "transform_batch") is FederatedDataModule.transform_batch

    @property
    def fixed_examples(self) -> bool:
        """Whether an example looks the same in every batch that holds it."""
        return (
            self.transforms_alike
            and _method_of(self, "batches") is FederatedDataModule.batches
            and isinstance(self.client_data, PooledData)
            and all(type(pool) is TensorExamples for pool in (self.pooled.train, self.pooled.test))
        )

    def epoch_order(self, key: Key, num_examples: int) -> Tensor:
        """Return the order in which a local epoch visits a client's examples.

        Override it for an order that is not random.

        Args:
            key: Names the epoch: purpose ("fit", "personalize"), round, client and epoch.
            num_examples: Number of the client's training examples.

        Returns:
            Positions in the client's stored order, int64, shape (num_examples,).
        """
        return torch.randperm(num_examples, generator=key.torch())

    def setup(self, stage: str | None = None) -> None:
        """Load, divide and check the data, once, at any stage.

        Raises:
            ConfigError: The partition needs labels, but the data has no classes.
            DataError: The data cannot be read, divided or used.
            FederationError: An item of a dataset raises.
        """
        if self._client_data is None:
            with naming_clients(lambda: self.client_names):
                self._set_up()

    def _set_up(self) -> None:
        loaded = self.load()
        if isinstance(loaded, ClientData):
            self.num_classes = loaded.num_classes
            self._client_data = loaded
            return
        train, test = loaded
        for pool in (train, test):
            check_instance(f"what {type(self).__name__}.load() returns for a pool", pool, Examples)
        if not hasattr(self, "num_classes"):
            self.num_classes = count_classes(train, test)
        pooled = prepare(
            train,
            test,
            num_clients=self.num_clients,
            num_classes=self.num_classes,
            partition=self.partition,
            val_fraction=self.val_fraction,
            seed=default_seed(self.seed),
            sample=self.sample_number,
            check=self.check_data,
            split=self.client_split,
        )
        if self.drop_last:
            check_batches(pooled.splits.sizes("train"), self.batch_size)
        self._client_data = pooled

    def sample_number(self, client: int, split: Split, index: int) -> int:
        """Return the number of the pool's example ``index`` in messages: ``index`` itself."""
        return index

    def num_batches(self, client: int, split: Split = "train", training: bool = True) -> int:
        """Return the number of batches that :meth:`batches` yields."""
        size = self.batch_size if training else self.eval_batch_size
        whole, rest = divmod(self.num_examples(client, split), size)
        return whole if training and self.drop_last else whole + (rest > 0)

    def batches(
        self,
        client: int,
        split: Split,
        *,
        key: Key | None = None,
        device: torch.device | str = "cpu",
    ) -> Iterator[Batch]:
        """Return one pass over a client's examples.

        Args:
            client: Client id.
            split: Which part of the client's data.
            key: Names a local epoch of training: ``batch_size`` examples per batch in the order of
                :meth:`epoch_order`. None means evaluation: ``eval_batch_size`` examples per batch
                in stored order.
            device: Device of the batches.

        Raises:
            ConfigError: The client or the split does not exist.
            FederationError: An item of a dataset raises.
        """
        pool = self._pool(client, split)
        if key is None:
            rows = torch.from_numpy(self.indices(client, split))
        else:
            rows = self._order(client, key, split)
        stream = self.read(pool, rows, key=key, device=torch.device(device))
        return self._naming_samples(stream, client, split)

    def read(
        self, pool: Examples, rows: Tensor, *, key: Key | None, device: torch.device
    ) -> Iterator[Batch]:
        """Yield a pool's examples ``rows`` in this order, in batches as the module gets them.

        Args:
            pool: The examples.
            rows: Indices into the pool, int64 on the CPU, shape (n,).
            key: Names a local epoch of training; None means evaluation.
            device: Device of the batches.

        Raises:
            SampleError: An example cannot be read.
        """
        stream = pool.batches(
            rows,
            self.batch_size if key is not None else self.eval_batch_size,
            drop_last=self.drop_last and key is not None,
            device=device,
            key=key,
        )
        for batch in stream:
            stored = self._narrowed(batch) if self.narrows_inputs else batch
            yield self.transform_batch(stored, key is not None)

    @property
    def reads_ahead(self) -> bool:
        """Whether processes read training examples, which :meth:`expect` then helps."""
        own = _method_of(self, "batches") is not FederatedDataModule.batches
        return (
            not own and isinstance(self.client_data, PooledData) and self.pooled.train.reads_ahead
        )

    def expect(self, passes: Iterable[tuple[int, Key]]) -> None:
        """Hear which local epochs come next, so that processes can read ahead.

        Args:
            passes: Clients, and the keys with which their :meth:`batches` will be called.
        """
        orders = ((self._order(client, key), key) for client, key in passes)
        self.pooled.train.expect(orders, self.batch_size, drop_last=self.drop_last)

    def _order(self, client: int, key: Key, split: Split = "train") -> Tensor:
        """Return a client's indices in the order of a local epoch."""
        rows = torch.from_numpy(self.indices(client, split))
        return rows[self.epoch_order(key, len(rows))]

    def teardown(self, stage: str) -> None:
        """End the processes that read examples; they are started again when they are needed."""
        if isinstance(self._client_data, PooledData):
            self._client_data.train.close()
            self._client_data.test.close()

    def epoch_batches(self, client: int, key: Key) -> list[Tensor]:
        """Return the examples in each batch of a local epoch, as positions in stored order.

        Args:
            client: Client id.
            key: Names the local epoch.
        """
        order = self.epoch_order(key, self.num_examples(client))
        size = self.batch_size
        starts = range(0, len(order) - len(order) % size if self.drop_last else len(order), size)
        return [order[start : start + size] for start in starts]

    def train_dataloader(self) -> ClientLoader:
        """Return a task for each training client that has training examples."""
        return ClientLoader(self.training_clients, ("train",), self.num_examples)

    def val_dataloader(self) -> ViewLoader:
        """Return the tasks of all evaluation views: of a client validation data, then the others.

        All come from one loader: with two, Lightning would require a ``dataloader_idx`` argument
        in the hooks of every module.
        """
        return ViewLoader(self.evaluation_views(), self.num_examples)

    def test_dataloader(self) -> ViewLoader:
        """Return the tasks of the evaluation views that are not of validation data."""
        views = [view for view in self.evaluation_views() if not view.on_validation_data]
        return ViewLoader(views, self.num_examples)

    def predict_dataloader(self) -> PredictLoader:
        """Return the test batches of client after client, in the order of :meth:`predict_index`."""
        return PredictLoader(
            self.evaluated_clients,
            lambda client: self.batches(client, "test"),
            lambda client: self.num_batches(client, "test", training=False),
        )

    def predict_index(self) -> np.ndarray:
        """Return the client id and test index of each prediction in order, int64, shape (n, 2)."""
        rows = [
            np.stack([np.full_like(indices, client), indices], axis=1)
            for client in self.evaluated_clients
            for indices in [self.indices(client, "test")]
        ]
        return np.concatenate([np.empty((0, 2), np.int64), *rows])

    def _narrowed(self, batch: Batch) -> Batch:
        """Return float64 inputs in torch's default dtype, unless the module computes in float64."""
        inputs = batch[0] if type(batch) is tuple else batch
        if not isinstance(inputs, Tensor) or inputs.dtype != torch.float64:
            return batch
        module = self.trainer.lightning_module if self.trainer is not None else None
        if module is None or any(p.dtype == torch.float64 for p in module.parameters()):
            return batch
        inputs = inputs.to(torch.get_default_dtype())
        return (inputs, *batch[1:]) if type(batch) is tuple else inputs

    def _naming_samples(
        self, stream: Iterator[Batch], client: int, split: Split
    ) -> Iterator[Batch]:
        """Yield the batches; an example that cannot be read is an error that names its client."""
        try:
            yield from stream
        except SampleError as error:
            where = owner(client)
            if error.index is not None and _is_own(client, split):
                where = f"{where}, {split} sample {error.index}"
            elif error.index is not None:
                where = sample_name(client, split, self.sample_number(client, split, error.index))
            raise FederationError(f"{where}: {error.text}") from error

    # -- which client holds which example ------------------------------------------------------

    _client_data: ClientData | None = None

    @property
    def client_data(self) -> ClientData:
        """Every client's examples.

        Raises:
            ConfigError: ``setup`` has not been called.
        """
        if self._client_data is None:
            raise ConfigError(f"{type(self).__name__} holds no data yet: call its setup() first")
        return self._client_data

    @property
    def pooled(self) -> PooledData:
        """The pools of examples and how they are divided.

        Raises:
            ConfigError: ``setup`` has not been called.
            DataError: The clients' examples are not pooled.
        """
        if not isinstance(self.client_data, PooledData):
            raise DataError(
                f"{type(self).__name__} has no list of all examples: "
                f"they are {self.client_data.rule}"
            )
        return self.client_data

    @cached_property
    def _own_splits(self) -> OwnSplits:
        return OwnSplits(self.split_examples, getattr(self, "num_classes", 0), self.check_data)

    def _pool(self, client: int, split: Split) -> Examples:
        if _is_own(client, split):
            return self._own_splits.examples(client, split)
        return self.client_data.pool(client, split)

    def num_examples(self, client: int, split: Split = "train") -> int:
        """Return the number of a client's examples in a split."""
        if _is_own(client, split):
            return self._own_splits.size(client, split)
        return self.client_data.size(client, split)

    def indices(self, client: int, split: Split = "train") -> np.ndarray:
        """Return a client's indices, in its stored order, int64, shape (n,).

        They index the pooled examples of all clients: the training pool for "train" and "val", the
        test pool for "test". Without pools, and in splits that a subclass adds, they index the
        client's own examples.
        """
        if _is_own(client, split):
            return np.arange(self._own_splits.size(client, split))
        return self.client_data.indices(client, split)

    def labels(self, client: int, split: Split = "train") -> np.ndarray:
        """Return a client's labels, in its stored order, shape (n, ...); classes are int64.

        Raises:
            DataError: The data has no labels.
        """
        labels = self._pool(client, split).labels
        if labels is None:
            raise DataError(f"{type(self).__name__} has no labels")
        chosen: np.ndarray = labels[self.indices(client, split)]
        return chosen

    def partition_digest(self) -> str:
        """Return the SHA-256 of all index lists of the three splits, in hexadecimal."""
        return self.client_data.digest()

    def dataset_fingerprint(self) -> str:
        """Return 16 digits that tell datasets apart: of sizes, labels, a sample of the inputs."""
        return self.client_data.fingerprint()

    def digests(self) -> dict[str, str]:
        """Return digests of partition, data, inputs and names, by which other data are noticed."""
        digests = {
            "partition": self.partition_digest()[:16],
            "dataset": self.dataset_fingerprint(),
            "dataset (inputs)": self.client_data.content_digest(),
        }
        if self.client_names is not None:
            names = "\n".join(self.client_names).encode()
            digests["names of clients"] = hashlib.sha256(names).hexdigest()[:16]
        return {name: digest for name, digest in digests.items() if digest}

    def partition_table(self, split: Split = "train", clients: int | None = None) -> np.ndarray:
        """Return the examples per client and class, int64, shape (clients, num_classes).

        Args:
            split: Which part of the clients' data.
            clients: How many clients, from client 0 on; None means all.
        """
        return self.client_data.table(split, clients)

    def partition_summary(self) -> str:
        """Return a few readable lines: clients, samples, classes, digest."""
        return self.client_data.summary()

    def save_partition(self, path: str | os.PathLike[str]) -> None:
        """Write the partition to a JSON file that :class:`PartitionFile` reads.

        The file lists held-out examples among the training examples: the same seed and
        ``val_fraction`` hold out the same ones again.

        Raises:
            EnvironmentFailure: The file cannot be written.
        """
        self.pooled.save(path, type(self).__name__)

    def write_partition(self, folder: str | os.PathLike[str]) -> None:
        """Write ``partition.csv``, one row per client, and ``partition.json`` into a folder.

        Beyond 10,000 clients the former lists the first 1,000 and the latter only names the rule:
        neither grows with the population.

        Raises:
            EnvironmentFailure: A file cannot be written.
        """
        self.client_data.write(Path(folder), type(self).__name__, self.client_names)

    # -- which clients train and are evaluated ---------------------------------------------------

    @cached_property
    def client_roles(self) -> ClientRoles:
        """Which clients train, are held out of training, and are evaluated."""
        return ClientRoles(
            self.num_clients, self.held_out_clients, self.eval_clients, default_seed(self.seed)
        )

    @property
    def training_clients(self) -> Sequence[int]:
        """The clients that may be chosen for a cohort, in ascending order."""
        return self.client_roles.training_clients

    @property
    def held_out_ids(self) -> np.ndarray:
        """The clients that never train, in ascending order, int64."""
        return self.client_roles.held_out_ids

    @property
    def evaluated_clients(self) -> Sequence[int]:
        """The clients that are evaluated, in ascending order; see :class:`ClientRoles`."""
        return self.client_roles.evaluated_clients

    def is_held_out(self, client: int) -> bool:
        """Whether a client never trains."""
        return self.client_roles.is_held_out(client)

    def held_out_digest(self) -> str:
        """Return the number of held-out clients, and eight digits that tell which they are."""
        return self.client_roles.held_out_digest()

    def clients_called(self, chosen: Sequence[Any], option: str = "clients") -> list[int]:
        """Return the ids that names, ids and ranges of ids mean, in ascending order.

        Raises:
            ConfigError: A word means no client.
        """
        return resolve_clients(chosen, self.client_names, option)

    def evaluating(self, clients: Sequence[int]) -> AbstractContextManager[None]:
        """Make ``clients``, ids in ascending order, the evaluated ones in the ``with`` block.

        Raises:
            ConfigError: A client does not exist.
        """
        if clients[-1] >= self.num_clients:
            raise ConfigError(
                f"clients: no client {clients[-1]} in {type(self).__name__}, whose clients are 0 "
                f"to {self.num_clients - 1}."
            )
        return self.client_roles.evaluating(clients)

    def __str__(self) -> str:
        return f"{type(self).__name__}()" if self._client_data is None else self.partition_summary()


def _is_own(client: int, split: Split) -> bool:
    """Whether :meth:`FederatedDataModule.split_examples` has the examples."""
    return client == CENTRAL or split not in SPLITS


def _method_of(instance: object, name: str) -> object:
    """Return the function behind a method, or the instance's own attribute of that name."""
    method = getattr(instance, name)
    return getattr(method, "__func__", method)
