"""The same examples in the same batches, for a federation and for plain Lightning."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset, default_collate

from fedlightning.datamodules import ClientDatasets
from tests.lightning_parity.idiom import CLASSES, Data, Examples


class Clients(ClientDatasets):
    """Clients who visit their examples in stored order, and whose batches look as a user's do.

    Args:
        data: The examples.
        number: How many of its clients there are.
    """

    def __init__(self, data: Data, number: int) -> None:
        train = [data.examples(n, seed) for seed, n in enumerate(data.sizes[:number])]
        test = [data.examples(n, 100 + seed) for seed, n in enumerate(data.tests[:number])]
        as_given = data.dataset or (lambda x, y: (x, y))
        super().__init__(
            train=[as_given(*pair) for pair in train],
            test=[as_given(*pair) for pair in test],
            num_classes=CLASSES if train[0][1].dtype == torch.int64 else None,
            batch_size=data.batch_size,
            eval_batch_size=data.batch_size,
            val_fraction=data.val_fraction,
            seed=0,
        )
        self._data = data
        self._pairs = {"train": train, "val": train, "test": test}

    def epoch_order(self, key: Any, num_examples: int) -> Tensor:
        return torch.arange(num_examples)

    def transform_batch(self, batch: Any, training: bool) -> Any:
        return batch if self._data.wrap is None else self._data.wrap(batch)


def stock_loader(clients: Clients, client: int, split: str) -> DataLoader[Any] | None:
    """Return an ordinary loader of one client's examples; ``None`` where there are none.

    Nothing but the choice of validation examples is asked of the federation's data module.
    """
    clients.setup()
    data: Data = clients._data
    chosen = [
        clients.sample_number(client, split, int(index)) for index in clients.indices(client, split)
    ]
    if not chosen:
        return None
    dataset = _dataset(data, clients._pairs[split][client])
    return DataLoader(Subset(dataset, chosen), data.batch_size, collate_fn=_Collate(data))


def pooled_loader(clients: Clients, split: str) -> DataLoader[Any] | None:
    """Return an ordinary loader of all clients' batches, one client's after the other's."""
    loaders = [stock_loader(clients, client, split) for client in range(clients.num_clients)]
    batches = [batch for loader in loaders if loader is not None for batch in loader]
    return DataLoader(batches, batch_size=None, collate_fn=_as_it_is) if batches else None


def _dataset(data: Data, pair: Examples) -> Dataset[Any]:
    return data.dataset(*pair) if data.dataset is not None else TensorDataset(*pair)


class _Collate:
    """Torch's own collation, then what the user makes of it."""

    def __init__(self, data: Data) -> None:
        self._wrap, self._pairs = data.wrap, data.dataset is None

    def __call__(self, items: list[Any]) -> Any:
        batch = default_collate(items)
        batch = tuple(batch) if self._pairs else batch
        return batch if self._wrap is None else self._wrap(batch)


def _as_it_is(batch: Any) -> Any:
    return batch
