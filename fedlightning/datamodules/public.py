"""Examples that everybody has: a share that is taken from the clients."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from fedlightning.core.batches import PUBLIC, Batch, Split
from fedlightning.core.seeding import Key, default_seed
from fedlightning.core.validation import check_number
from fedlightning.core.views import CENTRAL
from fedlightning.datamodules.base import FederatedDataModule
from fedlightning.datamodules.client_data import ClientData
from fedlightning.datamodules.derived import DerivedData
from fedlightning.datamodules.examples import TensorExamples
from fedlightning.datamodules.index_lists import ClientSplits
from fedlightning.errors import ConfigError, DataError

__all__ = ["PublicShare"]


class PublicShare(DerivedData):
    """Another data module's clients, who give a share of their training examples to everybody.

    The share is drawn at random from all clients' examples together; nobody trains on it as its
    own any more. It is the split ``public`` of no client (``CENTRAL``), which the server and every
    client may look at. Partition, validation and test examples are those of ``data``, and so are
    number of clients, batch sizes, held-out clients and seed.

    Args:
        data: The clients' data; its examples must lie in memory, as those of
            :class:`~fedlightning.datamodules.Digits` and ``FederatedArrays`` do.
        fraction: The share of all training examples, in (0, 1).

    Raises:
        ConfigError: ``fraction`` cannot be.

    Example:
        >>> from fedlightning.datamodules import CENTRAL, Digits
        >>> data = PublicShare(Digits(num_clients=10, seed=0), fraction=0.1)
        >>> data.setup()
        >>> data.num_examples(CENTRAL, "public"), sum(data.num_examples(c) for c in range(10))
        (135, 1212)
    """

    def __init__(self, data: FederatedDataModule, fraction: float = 0.1) -> None:
        super().__init__(data)
        self.fraction = float(check_number("fraction", fraction, above=0, below=1))

    def load(self) -> ClientData:
        """Load and divide the examples, and take the share away."""
        self.data.setup()
        pooled = self.data.pooled
        if not isinstance(pooled.train, TensorExamples):
            raise DataError(
                f"{type(self.data).__name__}'s examples are read one by one, so none can be given "
                "to everybody; give FederatedArrays with tensors."
            )
        own = [pooled.indices(client, "train") for client in range(pooled.num_clients)]
        everything = np.sort(np.concatenate(own))
        count = round(self.fraction * len(everything))
        if count < 1:
            raise ConfigError(
                f"fraction={self.fraction:g} of {len(everything)} training examples is none; "
                "raise it."
            )
        # a stream of its own (round 7), apart from the partition's and the held-out examples'
        rng = Key(default_seed(self.seed), "partition", round=7).numpy()
        self._rows = np.sort(rng.choice(everything, size=count, replace=False))
        left = [rows[~np.isin(rows, self._rows)] for rows in own]
        if (empty := next((c for c, rows in enumerate(left) if not len(rows)), None)) is not None:
            raise DataError(f"client {empty} has no example left; lower fraction={self.fraction:g}")
        splits = ClientSplits(train=left, val=pooled.splits.val, test=pooled.splits.test)
        return replace(pooled, splits=splits)

    def split_examples(self, client: int, split: Split) -> Any:
        """Return the public examples."""
        if (client, split) != (CENTRAL, PUBLIC):
            return super().split_examples(client, split)
        pool = self.pooled.train
        assert isinstance(pool, TensorExamples)
        labels = None if pool.labels is None else pool.labels[self._rows]
        return TensorExamples(pool.inputs[self._rows], labels)

    def transform_batch(self, batch: Batch, training: bool) -> Batch:
        """Transform a batch as ``data`` does."""
        return self.data.transform_batch(batch, training)

    @property
    def transforms_alike(self) -> bool:
        """Whether ``data`` transforms an example the same way every time."""
        return self.data.transforms_alike
