"""Which clients train, which are held out of training, and which are evaluated."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import overload

import numpy as np
from pytorch_lightning.utilities import rank_zero_warn

from fedlightning.core.seeding import Key
from fedlightning.core.validation import is_integer
from fedlightning.errors import ConfigError

__all__ = [
    "LARGE",
    "SAMPLE",
    "AllBut",
    "ClientRoles",
    "check_held_out",
    "evaluated_clients",
    "listed_clients",
]


class AllBut(Sequence[int]):
    """Clients 0..num_clients-1 without some, found by a search instead of a list of all.

    Args:
        num_clients: Number of clients.
        others: The excluded clients, in ascending order, int64.

    Example:
        >>> clients = AllBut(6, np.array([1, 4]))
        >>> list(clients), len(clients), 4 in clients
        ([0, 2, 3, 5], 4, False)
    """

    def __init__(self, num_clients: int, others: np.ndarray) -> None:
        self._num_clients = num_clients
        self._others = others
        self._before = others - np.arange(len(others))  # clients before each excluded one

    def __len__(self) -> int:
        return self._num_clients - len(self._others)

    @overload
    def __getitem__(self, place: int) -> int: ...
    @overload
    def __getitem__(self, place: slice) -> list[int]: ...
    def __getitem__(self, place: int | slice) -> int | list[int]:
        if isinstance(place, slice):
            return [self[index] for index in range(*place.indices(len(self)))]
        index = range(len(self))[place]
        return index + int(np.searchsorted(self._before, index, side="right"))

    def __contains__(self, client: object) -> bool:
        if not isinstance(client, (int, np.integer)) or not 0 <= client < self._num_clients:
            return False
        place = int(np.searchsorted(self._others, client))
        return place == len(self._others) or int(self._others[place]) != client


class ClientRoles:
    """Which clients of a population train, and which are evaluated.

    Args:
        num_clients: Number of clients.
        held_out_clients: How many never train: an int is a number, a float in [0, 1) a share.
        eval_clients: How many are evaluated; None means all, see :func:`evaluated_clients`.
        seed: Seed of both samples.

    Example:
        >>> roles = ClientRoles(6, held_out_clients=2, eval_clients=1, seed=0)
        >>> roles.held_out_ids.tolist(), list(roles.training_clients)
        ([0, 5], [1, 2, 3, 4])
        >>> roles.evaluated_clients
        [2, 5]
    """

    def __init__(
        self,
        num_clients: int,
        held_out_clients: int | float = 0,
        eval_clients: int | None = None,
        seed: int = 0,
    ) -> None:
        self.num_clients = num_clients
        self.held_out_clients = held_out_clients
        self.eval_clients = eval_clients
        self.seed = seed
        self._chosen: Sequence[int] | None = None

    @cached_property
    def held_out_ids(self) -> np.ndarray:
        """The clients that never train, in ascending order, int64.

        They are a function of the seed, ``num_clients`` and their number.
        """
        wanted = self.held_out_clients
        if isinstance(wanted, float) and wanted:
            wanted = min(max(round(wanted * self.num_clients), 1), self.num_clients - 1)
        rng = Key(self.seed, "held_out").numpy()
        chosen: np.ndarray = np.sort(rng.choice(self.num_clients, int(wanted), replace=False))
        return chosen

    @cached_property
    def training_clients(self) -> Sequence[int]:
        """The clients that may be chosen for a cohort, in ascending order."""
        if not len(self.held_out_ids):
            return range(self.num_clients)
        return AllBut(self.num_clients, self.held_out_ids)

    def is_held_out(self, client: int) -> bool:
        """Whether a client never trains."""
        return client not in self.training_clients

    def held_out_digest(self) -> str:
        """Return the number of held-out clients, and eight digits that tell which they are."""
        ids = self.held_out_ids
        if not len(ids):
            return "0"
        return f"{len(ids)} (ids {hashlib.sha256(ids.astype('<i8').tobytes()).hexdigest()[:8]})"

    @property
    def evaluated_clients(self) -> Sequence[int]:
        """The clients that are evaluated, in ascending order: all of them, or a sample.

        The held-out clients are sampled apart, ``eval_clients`` of them as well.

        Raises:
            ConfigError: ``eval_clients`` exceeds the number of clients that train.
        """
        return self._sample if self._chosen is None else self._chosen

    @contextmanager
    def evaluating(self, clients: Sequence[int]) -> Iterator[None]:
        """Make ``clients`` the evaluated ones inside the ``with`` block."""
        before, self._chosen = self._chosen, clients
        try:
            yield
        finally:
            self._chosen = before

    @cached_property
    def _sample(self) -> Sequence[int]:
        training, held_out = self.training_clients, self.held_out_ids
        places = evaluated_clients(len(training), self.eval_clients, self.seed)
        if not len(held_out):
            return places
        among = evaluated_clients(len(held_out), self.eval_clients, self.seed, held_out=True)
        if len(places) + len(among) == self.num_clients:
            return range(self.num_clients)
        return sorted([training[place] for place in places] + held_out[list(among)].tolist())


def check_held_out(value: int | float, num_clients: int) -> int | float:
    """Return ``value``, a number or share of clients that leaves at least one to train.

    Raises:
        ConfigError: It is neither, or leaves none.

    Example:
        >>> check_held_out(0.1, num_clients=100)
        0.1
        >>> check_held_out(100, num_clients=100)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        fedlightning.errors.ConfigError: held_out_clients=100 leaves none of 100 clients to train...
    """
    count = is_integer(value) and value >= 0
    if not count and not (isinstance(value, float) and 0 <= value < 1):
        raise ConfigError(
            f"held_out_clients must be a number of clients or a share in [0, 1), got {value!r}"
        )
    if value and (value >= num_clients or num_clients == 1):
        raise ConfigError(
            f"held_out_clients={value} leaves none of {num_clients} clients to train; lower it"
        )
    return int(value) if count else value


LARGE = 10_000
"""The largest number of clients that a run evaluates and lists one by one by default."""


SAMPLE = 1_000
"""Size of the sample that stands for more clients than that."""


def listed_clients(num_clients: int) -> int:
    """Return the number of clients, from client 0 on, that a run's files list.

    Example:
        >>> listed_clients(10_000), listed_clients(1_000_000)
        (10000, 1000)
    """
    return num_clients if num_clients <= LARGE else SAMPLE


def evaluated_clients(
    num_clients: int, wanted: int | None, seed: int, *, held_out: bool = False
) -> Sequence[int]:
    """Return the clients to evaluate, in ascending order: all, or a sample fixed by the seed.

    A sample rather than the first ones, because client ids often follow the order of the data.

    Args:
        num_clients: Number of clients.
        wanted: How many to evaluate. None means all, or a sample of ``SAMPLE`` of more than
            ``LARGE``, with a warning.
        seed: Seed of the sample.
        held_out: Whether these are the held-out clients, of which there may be fewer than wanted.

    Raises:
        ConfigError: ``wanted`` exceeds the number of clients.

    Example:
        >>> evaluated_clients(4, None, seed=0), evaluated_clients(1_000_000, 3, seed=0)
        (range(0, 4), [283523, 360806, 852727])
    """
    if wanted is None and num_clients > LARGE:
        rank_zero_warn(
            f"{num_clients:,} {'held-out ' if held_out else ''}clients: evaluation and "
            f"personalization take a random sample of {SAMPLE:,} of them, the same each time. "
            f"data.eval_clients sets another number, {num_clients} for all."
        )
        wanted = SAMPLE
    if wanted is None or wanted == num_clients or (held_out and wanted > num_clients):
        return range(num_clients)
    if wanted > num_clients:
        raise ConfigError(f"eval_clients={wanted} exceeds the number of clients: {num_clients}")
    # separate streams: of "partition", round 3 is apart from the partition (0) and the held-out
    # examples (1); of "held_out", round 1 is apart from the choice of held-out clients (0)
    rng = (Key(seed, "held_out", round=1) if held_out else Key(seed, "partition", round=3)).numpy()
    chosen: list[int] = sorted(rng.choice(num_clients, wanted, replace=False).tolist())
    return chosen
