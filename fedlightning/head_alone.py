"""A client's head, evaluated and fine-tuned on features that the body computes once."""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import Tensor, nn

from fedlightning.datamodules import ClientTask, Split
from fedlightning.features import (
    FeatureBatch,
    fed_with_features,
    joined,
    nearest_mean_accuracy,
    read_features,
)
from fedlightning.head_tuning import SGDSettings, tune_linear_head
from fedlightning.loop import FederatedLoop
from fedlightning.seeding import Key, forked_generators

__all__ = ["FEATURE_BYTES", "HeadAlone", "nearest_mean_of"]

FEATURE_BYTES = 2**25
"""Most that one client's features may take; with their copies it is two to three times as much."""


class HeadAlone:
    """Does for one client at a time what the long way does, without the body in every step.

    Valid where :mod:`fedlightning.head_conditions` has no objection. One client's features are held
    at a time, and nothing of a client's result depends on another one.

    Args:
        loop: The loop whose module, data and optimizer are used.
        head: The module's head.
        epochs: Passes over the client's training data.
        nearest_mean: Whether to measure the accuracy without the head, too.
    """

    def __init__(
        self, loop: FederatedLoop, head: nn.Linear, epochs: int, nearest_mean: bool
    ) -> None:
        sgd = SGDSettings.of(loop.trainer.optimizers[0])
        assert sgd is not None, "the conditions ask for it"
        self._sgd = sgd
        self._loop = loop
        self._head = head
        self._epochs = epochs
        self._nearest_mean = nearest_mean

    def fits(self, client: int) -> bool:
        """Whether a client's features are few enough to be held."""
        splits: tuple[Split, ...] = ("train", "test")
        rows = sum(self._loop.data.num_examples(client, split) for split in splits)
        return rows * self._head.in_features * self._head.weight.element_size() <= FEATURE_BYTES

    def run(self, task: ClientTask) -> tuple[dict[str, float], dict[str, float], float]:
        """Evaluate, fine-tune, evaluate; the module holds the client's head afterwards.

        Args:
            task: The client, and the data to evaluate on.

        Returns:
            What the module logs before, the same after, and the accuracy of nearest class means.

        Raises:
            NoFeatures: If the features do not say all about the outputs. Nothing has changed then.
        """
        loop, client = self._loop, task.client
        loop.module.eval()
        test, train = self._read(client, task.split), self._read(client, "train")
        with fed_with_features(loop.module, self._head):
            before = loop.evaluator.evaluate(task, test)
            nearest = nearest_mean_of(train, test) if self._nearest_mean else math.nan
            if train:
                rows = self._batches(client)
                tune_linear_head(self._head, *joined(train), rows, self._sgd)
            after = loop.evaluator.evaluate(task, test)
        return before, after, nearest

    def _read(self, client: int, split: Split) -> list[FeatureBatch]:
        loop = self._loop
        batches = loop.evaluator.batches(client, split)
        precision = loop.trainer.precision_plugin
        return read_features(loop.module, self._head, batches, precision, one_by_one=True)

    def _batches(self, client: int) -> Iterator[Tensor]:
        """Yield the rows of every batch of every epoch, as the long way would visit them."""
        data, key = self._loop.data, Key(self._loop.seed, "personalize", client=client)
        with forked_generators(key, self._loop.trainer.strategy.root_device):
            for epoch in range(self._epochs):
                yield from data.epoch_batches(client, key.at(epoch=epoch))


def nearest_mean_of(train: list[FeatureBatch], test: list[FeatureBatch]) -> float:
    """Return the accuracy of nearest class means; nan without training data."""
    if not train:
        return math.nan
    (features, labels), (points, classes) = joined(train), joined(test)
    return nearest_mean_accuracy(features.float(), labels, points.float(), classes)
