"""Views for clients with few classes: their own, the others', and half of each."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedlightning.core.batches import Split
from fedlightning.core.seeding import Key, default_seed
from fedlightning.core.views import EvaluationView
from fedlightning.datamodules.base import FederatedDataModule
from fedlightning.datamodules.examples import TensorExamples
from fedlightning.datamodules.vision.digits import Digits
from fedlightning.errors import ConfigError

__all__ = ["ClassViews", "FewClassDigits"]

_STREAM = 7  # of the partition's, by its round


class ClassViews(FederatedDataModule):
    """A mix-in for pooled data: test examples of classes that a client does not train on.

    Beside the main view, the client's own test data, there are ``ood``, as many test examples of
    the other clients' classes, and ``mixture``, half its own and half of those. A client that has
    all classes is in neither. Which examples are taken follows from the seed.

    Raises:
        ConfigError: The examples are not pooled in tensors.

    Example:
        >>> from fedlightning.datamodules import Classes, Digits
        >>> class Mine(ClassViews, Digits):
        ...     pass
        >>> data = Mine(num_clients=10, partition=Classes(3), seed=0)
        >>> data.setup()
        >>> own, others = (set(data.labels(0, split).tolist()) for split in ("train", "ood"))
        >>> len(own), own & others
        (3, set())
    """

    def evaluation_views(self) -> list[EvaluationView]:
        """Return the data module's views, ``ood`` and ``mixture``."""
        clients = self.evaluated_clients
        return [
            *super().evaluation_views(),
            EvaluationView("ood", clients, "ood"),
            EvaluationView("mixture", clients, "mixture"),
        ]

    def split_examples(self, client: int, split: Split) -> Any:
        """Return a client's examples of the views; see :class:`FederatedDataModule`."""
        if split not in ("ood", "mixture") or client < 0:
            return super().split_examples(client, split)
        pool = self.pooled.test
        if not isinstance(pool, TensorExamples) or pool.labels is None:
            raise ConfigError(
                f"{type(self).__name__}: views by class need labelled examples in tensors, "
                f"got {type(pool).__name__}."
            )
        key = Key(default_seed(self.seed), "partition", round=_STREAM, client=client)
        rng, own = key.numpy(), self.indices(client, "test")
        classes = np.unique(self.labels(client, "train"))
        others = np.flatnonzero(~np.isin(pool.labels, classes))
        size = min(len(own), len(others))
        chosen = rng.permutation(others)[:size]
        if split == "mixture":
            chosen = np.concatenate([rng.permutation(own)[:size], chosen])
        chosen = np.sort(chosen)
        return pool.inputs[chosen], pool.labels[chosen]


class FewClassDigits(ClassViews, Digits):
    """scikit-learn's digits, with the views of :class:`ClassViews`.

    Args:
        kwargs: Those of :class:`Digits`; ``partition=Classes(3)`` gives each client three classes.

    Example:
        >>> from fedlightning.datamodules import Classes
        >>> data = FewClassDigits(num_clients=10, partition=Classes(3), seed=0)
        >>> data.setup()
        >>> [view.name for view in data.evaluation_views()]
        ['', 'ood', 'mixture']
    """
