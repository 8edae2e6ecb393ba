"""The loaders of a Trainer, and their items: a client and one of its splits."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence

from fedlightning.core.batches import Batch, Split
from fedlightning.core.views import CENTRAL, EvaluationView, check_views

__all__ = ["ClientLoader", "ClientTask", "PredictLoader", "ViewLoader"]


class ClientTask:
    """A client and one of its splits: one "batch" to a Trainer.

    A plain class, because Lightning walks into dataclasses, named tuples, lists and mappings to
    move their contents to a device, and would take the fields for data.

    Args:
        client: Client id.
        split: Which part of the client's data.
        num_examples: Number of the client's examples in that part.

    Example:
        >>> ClientTask(3, "train", 60)
        ClientTask(client=3, split='train', num_examples=60)
    """

    __slots__ = ("client", "num_examples", "split")

    def __init__(self, client: int, split: Split, num_examples: int) -> None:
        self.client = client
        self.split: Split = split
        self.num_examples = num_examples

    def __repr__(self) -> str:
        return (
            f"ClientTask(client={self.client}, split={self.split!r}, "
            f"num_examples={self.num_examples})"
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ClientTask):
            return NotImplemented
        return self._fields() == other._fields()

    def __hash__(self) -> int:
        return hash(self._fields())

    def _fields(self) -> tuple[int, str, int]:
        return self.client, self.split, self.num_examples


class ClientLoader:
    """Tasks client by client, for each client its splits; those without data are skipped.

    A task is made when it is reached, and the tasks are counted when their number is needed.

    Args:
        clients: Client ids, in the order of the tasks.
        splits: The splits to visit.
        num_examples: Returns the number of a client's examples in a split.

    Example:
        >>> sizes = {"val": [1, 1, 0], "test": [5, 0, 7]}
        >>> loader = ClientLoader(range(3), ("val", "test"), lambda c, split: sizes[split][c])
        >>> len(loader), [(task.split, task.client) for task in loader]
        (4, [('val', 0), ('test', 0), ('val', 1), ('test', 2)])
    """

    def __init__(
        self,
        clients: Sequence[int],
        splits: tuple[Split, ...],
        num_examples: Callable[[int, Split], int],
    ) -> None:
        self.splits = splits
        self._clients = clients
        self._num_examples = num_examples
        self._length: int | None = None

    def __len__(self) -> int:
        if self._length is None:
            self._length = sum(1 for _ in self)
        return self._length

    def __iter__(self) -> Iterator[ClientTask]:
        for client in self._clients:
            for split in self.splits:
                size = self._num_examples(client, split)
                if size:
                    yield ClientTask(client, split, size)

    def __repr__(self) -> str:
        return f"ClientLoader(splits={self.splits!r}, clients={len(self._clients)})"


class ViewLoader:
    """The tasks of evaluation views: one for each client and split with data, client by client.

    What several views ask for is one task. Of a client validation data comes first, then the splits
    in the order of the views; data that belongs to no client comes last.

    Args:
        views: The views.
        num_examples: Returns how many examples a client has in a split.

    Raises:
        ConfigError: Two views would log under the same names.

    Example:
        >>> views = [EvaluationView("", range(3)), EvaluationView("", [1], "val")]
        >>> loader = ViewLoader(views, lambda client, split: 5 * client)
        >>> len(loader), [(task.split, task.client) for task in loader]
        (3, [('val', 1), ('test', 1), ('test', 2)])
    """

    def __init__(
        self, views: Sequence[EvaluationView], num_examples: Callable[[int, Split], int]
    ) -> None:
        check_views(views)
        self.views = tuple(views)
        self._num_examples = num_examples
        self._length: int | None = None

    def __len__(self) -> int:
        if self._length is None:
            self._length = sum(1 for _ in self)
        return self._length

    def __iter__(self) -> Iterator[ClientTask]:
        splits = dict.fromkeys(["val", *(view.split for view in self.views)])
        rank = {split: place for place, split in enumerate(splits)}
        last = None
        for _, client, _, split in heapq.merge(*(_places(view, rank) for view in self.views)):
            size = self._num_examples(client, split) if (client, split) != last else 0
            last = client, split
            if size:
                yield ClientTask(client, split, size)

    def __repr__(self) -> str:
        return f"ViewLoader(views={self.views!r})"


def _places(view: EvaluationView, rank: dict[Split, int]) -> Iterator[tuple[bool, int, int, Split]]:
    """Yield where each of a view's tasks stands among those of all views, and its split."""
    for client in view.clients:
        yield client == CENTRAL, client, rank[view.split], view.split


class PredictLoader:
    """The batches of client after client, as an ordinary loader for ``Trainer.predict``.

    Args:
        clients: Client ids.
        batches: Makes one client's batches.
        num_batches: Returns their number.

    Example:
        >>> loader = PredictLoader(range(3), lambda client: iter([(client, "a")] * client), int)
        >>> len(loader), list(loader)
        (3, [(1, 'a'), (2, 'a'), (2, 'a')])
    """

    def __init__(
        self,
        clients: Sequence[int],
        batches: Callable[[int], Iterator[Batch]],
        num_batches: Callable[[int], int],
    ) -> None:
        self._clients = clients
        self._batches = batches
        self._num_batches = num_batches

    def __len__(self) -> int:
        return sum(map(self._num_batches, self._clients))

    def __iter__(self) -> Iterator[Batch]:
        for client in self._clients:
            yield from self._batches(client)
