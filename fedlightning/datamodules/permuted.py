"""Concept shift: the same images, but clients disagree about what some classes are called."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fedlightning.core.batches import Batch, Split
from fedlightning.core.seeding import Key, default_seed
from fedlightning.core.validation import check_integer
from fedlightning.datamodules.base import FederatedDataModule
from fedlightning.datamodules.client_data import ClientData
from fedlightning.datamodules.derived import DerivedData
from fedlightning.datamodules.examples import TensorExamples
from fedlightning.errors import ConfigError, DataError

__all__ = ["PermutedLabels"]


class PermutedLabels(DerivedData):
    """Another data module's clients, each of whom exchanges the labels of some classes.

    Which classes, and in which circle they change places, is drawn for each client; its training,
    validation and test labels agree. Examples and partition are those of ``data``, and so are
    number of clients, batch sizes, held-out clients and seed.

    Args:
        data: The clients' data; its examples must lie in memory, as those of
            :class:`~fedlightning.datamodules.Digits` and ``FederatedArrays`` do.
        classes: How many classes change places, at least two; 2 exchanges a pair. 0 changes none.

    Raises:
        ConfigError: ``classes`` cannot be.

    Example:
        >>> from fedlightning.datamodules import Digits
        >>> data = PermutedLabels(Digits(num_clients=10, seed=0), classes=2)
        >>> data.setup()
        >>> moved = data.permutation(client=3) != np.arange(10)
        >>> int(moved.sum())
        2
    """

    def __init__(self, data: FederatedDataModule, classes: int = 2) -> None:
        super().__init__(data)
        self.classes = check_integer("classes", classes, at_least=0)
        if self.classes == 1:
            raise ConfigError("classes must be 0, or at least 2 for two to change places, got 1.")

    def load(self) -> ClientData:
        """Load and divide the examples, and rename each client's classes."""
        self.data.setup()
        pooled, classes = self.data.pooled, self.data.num_classes
        if not (isinstance(pooled.train, TensorExamples) and pooled.train.labels is not None):
            raise DataError(
                f"{type(self.data).__name__}'s examples are read one by one, so their labels "
                "cannot be changed here; give FederatedArrays with tensors."
            )
        if self.classes > classes:
            raise ConfigError(f"classes={self.classes}, but the data has {classes} classes.")
        changed = {}
        for split, pool in (("train", pooled.train), ("test", pooled.test)):
            assert isinstance(pool, TensorExamples)
            assert pool.labels is not None
            labels = pool.labels.copy()
            for client in range(pooled.num_clients):
                parts: tuple[Split, ...] = ("train", "val") if split == "train" else ("test",)
                for part in parts:
                    rows = pooled.indices(client, part)
                    labels[rows] = self._permutation(client, classes)[labels[rows]]
            changed[split] = TensorExamples(pool.inputs, labels)
        return replace(pooled, train=changed["train"], test=changed["test"])

    def permutation(self, client: int) -> np.ndarray:
        """Return what a client calls each class, int64, shape (classes,).

        Args:
            client: Client id.
        """
        return self._permutation(client, self.client_data.num_classes)

    def _permutation(self, client: int, num_classes: int) -> np.ndarray:
        # a stream of its own (round 3), apart from the partition's and the held-out examples'
        rng = Key(default_seed(self.seed), "partition", round=3, client=client).numpy()
        named = np.arange(num_classes)
        circle = rng.permutation(num_classes)[: self.classes]
        named[circle] = np.roll(circle, 1)
        return named

    def transform_batch(self, batch: Batch, training: bool) -> Batch:
        """Transform a batch as ``data`` does."""
        return self.data.transform_batch(batch, training)

    @property
    def transforms_alike(self) -> bool:
        """Whether ``data`` transforms an example the same way every time."""
        return self.data.transforms_alike
