"""One client's work on one split, and the loaders that a Trainer goes through."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

from fedlightning.errors import ConfigError, did_you_mean

__all__ = ["SPLITS", "Batch", "ClientLoader", "ClientTask", "PredictLoader", "Split", "check_split"]

Split = Literal["train", "val", "test"]
Batch = Any
"""What a client's ``training_step`` gets: ``(inputs, labels)`` unless the data say otherwise."""

SPLITS: tuple[Split, ...] = get_args(Split)


class ClientTask:
    """A client and one of its splits: what a Trainer sees as one "batch".

    A plain class, because Lightning walks into dataclasses, named tuples, lists and mappings to
    move what they hold to a device, and would take the fields for data.

    Args:
        client: Client id.
        split: Which part of the client's data.
        num_examples: How many examples the client has in that part.

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
    """Tasks in client order, for each client its splits; those without data are left out.

    Args:
        num_examples: Number of examples of every client, by client id, for each split to visit.

    Example:
        >>> loader = ClientLoader({"val": [1, 1, 0], "test": [5, 0, 7]})
        >>> len(loader), [(task.split, task.client) for task in loader]
        (4, [('val', 0), ('test', 0), ('val', 1), ('test', 2)])
    """

    def __init__(self, num_examples: Mapping[Split, Sequence[int]]) -> None:
        self.splits: tuple[Split, ...] = tuple(num_examples)
        self._tasks = [
            (client, split, n)
            for client, sizes in enumerate(zip(*num_examples.values(), strict=True))
            for split, n in zip(num_examples, sizes, strict=True)
            if n > 0
        ]

    def __len__(self) -> int:
        return len(self._tasks)

    def __iter__(self) -> Iterator[ClientTask]:
        return (ClientTask(*task) for task in self._tasks)

    def __repr__(self) -> str:
        return f"ClientLoader(splits={self.splits!r}, tasks={len(self)})"


class PredictLoader:
    """The batches of client after client, as an ordinary loader for ``Trainer.predict``.

    Args:
        batches: Makes one client's batches.
        num_batches: How many these are, by client id.

    Example:
        >>> loader = PredictLoader(lambda client: iter([(client, "a")] * client), [0, 1, 2])
        >>> len(loader), list(loader)
        (3, [(1, 'a'), (2, 'a'), (2, 'a')])
    """

    def __init__(
        self, batches: Callable[[int], Iterator[Batch]], num_batches: Sequence[int]
    ) -> None:
        self._batches = batches
        self._num_batches = num_batches

    def __len__(self) -> int:
        return sum(self._num_batches)

    def __iter__(self) -> Iterator[Batch]:
        for client in range(len(self._num_batches)):
            yield from self._batches(client)


def check_split(split: str) -> None:
    """Refuse a name that is none of the splits.

    Raises:
        ConfigError: ``split`` is not "train", "val" or "test".

    Example:
        >>> check_split("tset")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        fedlightning.errors.ConfigError: split must be ..., got 'tset'. Did you mean 'test'?
    """
    if split not in SPLITS:
        raise ConfigError(
            f"split must be train, val or test, got {split!r}.{did_you_mean(split, SPLITS)}"
        )
