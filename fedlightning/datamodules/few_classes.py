"""Clients with few images of few classes, and clients that were never seen, with other images."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from fedlightning.core.batches import Batch
from fedlightning.core.seeding import Key, default_seed
from fedlightning.core.validation import check_instance, check_integer
from fedlightning.datamodules.base import FederatedDataModule
from fedlightning.datamodules.client_data import ClientData
from fedlightning.datamodules.examples import TensorExamples
from fedlightning.datamodules.generated import GeneratedClients
from fedlightning.errors import ConfigError, DataError

__all__ = ["FewClasses"]


class FewClasses(GeneratedClients):
    """Each client has a few images of a few random classes; newcomers have a labelled support set.

    Clients that train draw their images from the training pool of ``data``. The clients held out of
    training draw from its test pool, so that nobody has trained on their images: the split
    ``train`` is a newcomer's support set, ``test`` its queries. Within a client no image occurs
    twice, in whatever split; two clients may have drawn the same one.

    Args:
        data: Where images come from, such as :class:`~fedlightning.datamodules.Digits`; its own
            clients and partition do not matter.
        num_clients: Number of clients, the held-out ones included.
        classes: Classes per client.
        num_train: Training images of a client that trains.
        num_support: Support images of a client held out of training.
        num_test: Test images, or queries, of any client.
        swapped: How many of its classes have their labels changed at a client, in a circle: 2
            exchanges a pair. What a class is called is then known from the support set alone.
        kwargs: ``held_out_clients``, ``batch_size``, ``seed``, ...: see
            :class:`FederatedDataModule`.

    Raises:
        ConfigError: A number cannot be.
        DataError: The pools have too few images of a client's classes.

    Example:
        >>> from fedlightning.datamodules import Digits
        >>> data = FewClasses(Digits(seed=0), num_clients=12, held_out_clients=4, seed=0)
        >>> data.setup()
        >>> newcomer = int(data.held_out_ids[0])
        >>> data.num_examples(newcomer), len(set(data.labels(newcomer).tolist()))
        (20, 4)
    """

    def __init__(
        self,
        data: FederatedDataModule,
        num_clients: int = 60,
        classes: int = 4,
        num_train: int = 40,
        num_support: int = 20,
        num_test: int = 40,
        swapped: int = 0,
        **kwargs: Any,
    ) -> None:
        check_instance("data", data, FederatedDataModule)
        super().__init__(
            self.drawn,
            num_clients=num_clients,
            num_train=self._num_train,
            num_test=check_integer("num_test", num_test, at_least=0),
            **kwargs,
        )
        self.data = data
        self.classes = check_integer("classes", classes, at_least=1)
        self.images = check_integer("num_train", num_train, at_least=1)
        self.num_support = check_integer("num_support", num_support, at_least=1)
        self.num_queries = num_test
        self.swapped = check_integer("swapped", swapped, at_least=0, at_most=self.classes)
        if self.swapped == 1:
            raise ConfigError("swapped must be 0, or at least 2 for two labels to change, got 1.")

    def load(self) -> ClientData:
        """Load both pools of images."""
        loaded = self.data.load()
        if isinstance(loaded, ClientData) or not all(
            isinstance(pool, TensorExamples) and pool.labels is not None for pool in loaded
        ):
            raise DataError(
                f"{type(self.data).__name__} has no pools of labelled tensors to draw from; give "
                "Digits, FashionMNIST or FederatedArrays."
            )
        self._pools = loaded
        labels = np.concatenate([pool.labels for pool in loaded if pool.labels is not None])
        self.num_classes = int(labels.max()) + 1
        if self.classes > self.num_classes:
            raise ConfigError(
                f"classes={self.classes}, but the data has {self.num_classes} classes."
            )
        return super().load()

    def drawn(self, client: int, split: str) -> tuple[torch.Tensor, np.ndarray]:
        """Return a client's images and labels; called once for each client and split."""
        pool = self._pools[1 if self.is_held_out(client) else 0]
        assert isinstance(pool, TensorExamples)
        assert pool.labels is not None
        # a stream of its own (round 5); the client's splits are one draw without repetition
        rng = Key(default_seed(self.seed), "partition", round=5, client=client).numpy()
        classes = rng.permutation(self.num_classes)[: self.classes]
        images = rng.permutation(np.flatnonzero(np.isin(pool.labels, classes)))
        first = self._num_train(client)
        if len(images) < first + self.num_queries:
            raise DataError(
                f"{len(images)} images of classes {sorted(classes.tolist())} are fewer than "
                f"{first} and {self.num_queries}; lower num_train, num_support or num_test, or "
                "raise classes"
            )
        chosen = images[:first] if split == "train" else images[first : first + self.num_queries]
        named = np.arange(self.num_classes)
        named[classes[: self.swapped]] = np.roll(classes[: self.swapped], 1)
        return pool.inputs[chosen], named[pool.labels[chosen]]

    def _num_train(self, client: int) -> int:
        return self.num_support if self.is_held_out(client) else self.images

    def transform_batch(self, batch: Batch, training: bool) -> Batch:
        """Transform a batch as ``data`` does."""
        return self.data.transform_batch(batch, training)

    @property
    def transforms_alike(self) -> bool:
        """Whether ``data`` transforms an example the same way every time."""
        return self.data.transforms_alike
