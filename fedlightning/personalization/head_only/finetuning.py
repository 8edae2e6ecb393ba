"""A client's head, evaluated and fine-tuned on features that the body computes once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import chain

from torch import Tensor, nn

from fedlightning.core.overrides import overrides
from fedlightning.core.seeding import Key, forked_generators
from fedlightning.datamodules import ClientTask, Split
from fedlightning.engine.loop import FederatedLoop
from fedlightning.models.base import FederatedModule
from fedlightning.personalization.head_only.features import (
    FeatureBatch,
    fed_with_features,
    joined,
    nearest_mean_accuracy,
    read_features,
)
from fedlightning.personalization.head_only.linear_sgd import SGDSettings, tune_linear_head
from fedlightning.personalization.scoring import Scores, measure, preserve_training_state

__all__ = ["FEATURE_BYTES", "HeadOnlyFineTuner", "nearest_mean_of"]

FEATURE_BYTES = 2**25
"""Most that one client's features may take; with their copies it is two to three times as much."""


class HeadOnlyFineTuner:
    """Does for one client at a time what the long way does, without the body in every step.

    Valid where :mod:`fedlightning.personalization.head_only.eligibility` has no objection. One
    client's features are held at a time, and nothing of a client's result depends on another one.

    Args:
        loop: The loop whose module, data and optimizer are used.
        head: The module's head.
        epochs: Passes over the client's training data.
        nearest_mean: Whether to measure the accuracy without the head, too.
        curve: Whether to measure after every epoch, too.
    """

    def __init__(
        self,
        loop: FederatedLoop,
        head: nn.Linear,
        epochs: int,
        nearest_mean: bool,
        curve: bool = False,
    ) -> None:
        sgd = SGDSettings.of(loop.trainer.optimizers[0])
        assert sgd is not None, "the conditions ask for it"
        self._sgd = sgd
        self._loop = loop
        self._head = head
        self._epochs = epochs
        self._nearest_mean = nearest_mean
        self._curve = curve
        # what is measured on features: a validation step of the user's own may want more
        own = overrides(loop.module, "validation_step", FederatedModule)
        with_val = loop.data.val_fraction and not own
        self._measured: tuple[Split, ...] = ("test", "val") if with_val else ("test",)

    def fits(self, client: int) -> bool:
        """Whether a client's features are few enough to be held."""
        splits: tuple[Split, ...] = ("train", *self._measured)
        rows = sum(self._loop.data.num_examples(client, split) for split in splits)
        return rows * self._head.in_features * self._head.weight.element_size() <= FEATURE_BYTES

    def run(self, client: int, tasks: Sequence[ClientTask]) -> tuple[list[Scores], float]:
        """Measure, fine-tune, measure; the module holds the client's head afterwards.

        Args:
            client: The client.
            tasks: The splits on which it is measured.

        Returns:
            What was measured before and after, with a curve also after every epoch, and the
            accuracy of nearest class means.

        Raises:
            NoFeatures: If the features do not say all about the outputs. Nothing has changed then.
        """
        loop = self._loop
        loop.module.eval()
        features = {split: self._read(client, split) for split in self._measured}
        train = self._read(client, "train")

        def scores() -> Scores:
            return measure(tasks, lambda task: self._evaluate(task, features))

        measured = [scores()]
        nearest = nearest_mean_of(train, features["test"]) if self._nearest_mean else math.nan
        if train:
            after_epoch = (lambda: measured.append(scores())) if self._curve else None
            self._tune(client, train, after_epoch)
        measured.append(scores())
        return measured, nearest

    def _tune(
        self, client: int, train: list[FeatureBatch], after_epoch: Callable[[], None] | None
    ) -> None:
        """Train the head; ``after_epoch`` is called after every epoch but the last."""
        head, sgd, (inputs, labels) = self._head, self._sgd, joined(train)
        epochs = self._epoch_batches(client)
        if after_epoch is None:
            tune_linear_head(head, inputs, labels, chain.from_iterable(epochs), sgd)
            return
        velocity: Tensor | None = None
        for epoch, batches in enumerate(epochs, start=1):
            velocity = tune_linear_head(head, inputs, labels, batches, sgd, velocity)
            if epoch < self._epochs:
                with preserve_training_state(self._loop.module):
                    after_epoch()

    def _evaluate(
        self, task: ClientTask, features: dict[Split, list[FeatureBatch]]
    ) -> dict[str, float]:
        evaluator = self._loop.evaluator
        if task.split not in features:
            return evaluator.evaluate(task)
        with fed_with_features(self._loop.module, self._head):
            return evaluator.evaluate(task, features[task.split])

    def _read(self, client: int, split: Split) -> list[FeatureBatch]:
        loop = self._loop
        batches = loop.evaluator.batches(client, split)
        precision = loop.trainer.precision_plugin
        return read_features(loop.module, self._head, batches, precision, one_by_one=True)

    def _epoch_batches(self, client: int) -> Iterator[list[Tensor]]:
        """Yield the rows of every batch, epoch by epoch, as the long way would visit them."""
        data, key = self._loop.data, Key(self._loop.seed, "personalize", client=client)
        with forked_generators(key, self._loop.trainer.strategy.root_device):
            for epoch in range(self._epochs):
                yield data.epoch_batches(client, key.at(epoch=epoch))


def nearest_mean_of(train: list[FeatureBatch], test: list[FeatureBatch]) -> float:
    """Return the accuracy of nearest class means; nan without training or test data."""
    if not train or not test:
        return math.nan
    (features, labels), (points, classes) = joined(train), joined(test)
    return nearest_mean_accuracy(features.float(), labels, points.float(), classes)
