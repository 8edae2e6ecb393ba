"""Images whose colour tells their label at the clients, and misleads elsewhere."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from fedlightning.core.batches import Split
from fedlightning.core.seeding import Key, default_seed
from fedlightning.core.validation import check_integer, check_number
from fedlightning.core.views import EvaluationView
from fedlightning.datamodules.client_data import ClientData
from fedlightning.datamodules.generated import GeneratedClients
from fedlightning.errors import ConfigError

__all__ = ["ColoredDigits", "ColoredImages"]

_SPLITS = ("train", "test", "ood")
_DIVISION, _COLOURS, _NOISE, _FLIPS = 3, 4, 5, 6  # streams of the partition's, by their round


class ColoredImages(GeneratedClients, ABC):
    """Grey images in one of two colour channels; the colour is a cue that holds at home alone.

    The label of an image is 1 if its class is in the upper half of the classes; at each client
    ``flipped_classes`` classes, drawn for it, have the other label. A share ``label_noise`` of all
    labels is then wrong. The colour is the label, but for a share of the images: the client's
    ``disagreement`` in training and on its own test data, ``ood_disagreement`` in the view ``ood``,
    which has the same images and labels as the test data. So a model that goes by the colour is
    good at home and bad in the view, and one that goes by the shape is at ``1 - label_noise`` in
    both. What the clients' cues have in common, the shape, is invariant; what the flips change
    is each client's own.

    A subclass returns images and their classes in :meth:`load_images`.

    Args:
        disagreement: One share per client.
        ood_disagreement: The share in the view ``ood``.
        label_noise: Share of wrong labels.
        flipped_classes: How many classes of each client have the other label.
        test_fraction: Share of a client's images that are for tests.
        kwargs: ``batch_size``, ``val_fraction``, ``seed``, ...: see :class:`FederatedDataModule`.
            The number of clients is the length of ``disagreement``.

    Raises:
        ConfigError: A share is out of its range, or there is no client.

    Source:
        The colours are those of Arjovsky, Bottou, Gulrajani, Lopez-Paz. Invariant Risk
        Minimization. 2019. https://arxiv.org/abs/1907.02893
    """

    def __init__(
        self,
        disagreement: Sequence[float] = (0.05, 0.15, 0.2, 0.25),
        ood_disagreement: float = 0.9,
        label_noise: float = 0.25,
        flipped_classes: int = 0,
        test_fraction: float = 0.25,
        **kwargs: Any,
    ) -> None:
        if "num_clients" in kwargs:
            raise ConfigError("num_clients follows from disagreement, one share per client")
        if not disagreement:
            raise ConfigError("disagreement must have one share per client, got none")
        super().__init__(self._examples_of, num_clients=len(disagreement), num_classes=2, **kwargs)
        for share in disagreement:
            check_number("disagreement", share, at_least=0, at_most=1)
        self.disagreement = tuple(float(share) for share in disagreement)
        self.ood_disagreement = check_number(
            "ood_disagreement", ood_disagreement, at_least=0, at_most=1
        )
        self.label_noise = check_number("label_noise", label_noise, at_least=0, below=1)
        self.flipped_classes = check_integer("flipped_classes", flipped_classes, at_least=0)
        self.test_fraction = check_number("test_fraction", test_fraction, above=0, below=1)

    def load(self) -> ClientData:
        """Read the images, and make the first client's examples."""
        count = int(self._source[1].max()) + 1
        check_integer("flipped_classes", self.flipped_classes, at_least=0, at_most=count)
        return super().load()

    @abstractmethod
    def load_images(self) -> tuple[np.ndarray, np.ndarray]:
        """Return grey images, float32, shape (n, height, width), and their classes, shape (n,)."""

    def evaluation_views(self) -> list[EvaluationView]:
        """Return the data module's views, and ``ood``, in which the colour misleads."""
        ood = EvaluationView("ood", self.evaluated_clients, "ood")
        return [*super().evaluation_views(), ood]

    def split_examples(self, client: int, split: Split) -> Any:
        """Return a client's images of the view ``ood``; see :meth:`FederatedDataModule`."""
        if split == "ood" and client >= 0:
            return self._examples_of(client, split)
        return super().split_examples(client, split)

    @cached_property
    def _source(self) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
        """Images, classes, and which of them each client has."""
        images, classes = self.load_images()
        order = self._stream(_DIVISION).permutation(len(images))
        size = len(images) // self.num_clients
        whole = order[: size * self.num_clients].reshape(self.num_clients, size)
        return images, classes, list(whole)

    def _examples_of(self, client: int, split: str) -> tuple[np.ndarray, np.ndarray]:
        images, classes, clients = self._source
        number = round(self.test_fraction * len(clients[client]))
        rows = clients[client][number:] if split == "train" else clients[client][:number]
        count = int(classes.max()) + 1
        flipped = self._stream(_FLIPS, client).permutation(count)[: self.flipped_classes]
        labels = (classes[rows] >= count / 2) ^ np.isin(classes[rows], flipped)
        noise = self._stream(_NOISE, client, _SPLITS.index("train" if split == "train" else "test"))
        labels ^= noise.random(len(rows)) < self.label_noise
        share = self.ood_disagreement if split == "ood" else self.disagreement[client]
        colours = self._stream(_COLOURS, client, _SPLITS.index(split)).random(len(rows)) < share
        colored = np.zeros((len(rows), 2, *images.shape[1:]), np.float32)
        colored[np.arange(len(rows)), (labels ^ colours).astype(np.int64)] = images[rows]
        return colored, labels.astype(np.int64)

    def _stream(self, purpose: int, client: int = 0, split: int = 0) -> np.random.Generator:
        key = Key(default_seed(self.seed), "partition", round=purpose, client=client, epoch=split)
        return key.numpy()


class ColoredDigits(ColoredImages):
    """scikit-learn's digits, 1,797 images (2, 8, 8) in two colours; see :class:`ColoredImages`.

    Args:
        kwargs: Those of :class:`ColoredImages`.

    Example:
        >>> data = ColoredDigits(disagreement=(0.1, 0.2), seed=0)
        >>> data.setup()
        >>> images, labels = next(data.batches(0, "ood"))
        >>> images.shape, data.num_classes, data.num_examples(1)
        (torch.Size([128, 2, 8, 8]), 2, 674)
    """

    def load_images(self) -> tuple[np.ndarray, np.ndarray]:
        """Read the digits."""
        from sklearn.datasets import load_digits

        digits = load_digits()
        return (digits.images / 16).astype(np.float32), digits.target.astype(np.int64)
