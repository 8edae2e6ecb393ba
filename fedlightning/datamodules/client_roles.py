"""Which clients train, which are held out of training, and which are evaluated."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from typing import overload

import numpy as np

from fedlightning.datamodules.population import evaluated_clients
from fedlightning.errors import ConfigError
from fedlightning.core.seeding import Key, default_seed

__all__ = ["AllBut", "Roles", "check_held_out"]


class AllBut(Sequence[int]):
    """Clients 0..num_clients-1 without some: found by a search, so that no list of all is needed.

    Args:
        num_clients: Number of clients.
        others: The clients that are left out, in ascending order, int64.

    Example:
        >>> clients = AllBut(6, np.array([1, 4]))
        >>> list(clients), len(clients), 4 in clients
        ([0, 2, 3, 5], 4, False)
    """

    def __init__(self, num_clients: int, others: np.ndarray) -> None:
        self._num_clients = num_clients
        self._others = others
        self._before = others - np.arange(len(others))  # clients before each that is left out

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


class Roles:
    """What a data module's clients do in a run."""

    num_clients: int
    seed: int | None
    eval_clients: int | None
    held_out_clients: int | float

    @cached_property
    def held_out_ids(self) -> np.ndarray:
        """The clients that never train, in ascending order, int64.

        They are a function of the seed, of ``num_clients`` and of how many there are.
        """
        wanted = self.held_out_clients
        if isinstance(wanted, float) and wanted:
            wanted = min(max(round(wanted * self.num_clients), 1), self.num_clients - 1)
        rng = Key(default_seed(self.seed), "held_out").numpy()
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
        """Return how many clients are held out, and eight digits that tell which."""
        ids = self.held_out_ids
        if not len(ids):
            return "0"
        return f"{len(ids)} (ids {hashlib.sha256(ids.astype('<i8').tobytes()).hexdigest()[:8]})"

    @cached_property
    def evaluated_clients(self) -> Sequence[int]:
        """The clients that are evaluated, in ascending order: all of them, or a sample.

        Of those that are held out a sample of its own, of ``eval_clients`` as well.

        Raises:
            ConfigError: ``eval_clients`` is more than there are clients that train.
        """
        training, held_out = self.training_clients, self.held_out_ids
        seed = default_seed(self.seed)
        places = evaluated_clients(len(training), self.eval_clients, seed)
        if not len(held_out):
            return places
        among = evaluated_clients(len(held_out), self.eval_clients, seed, held_out=True)
        if len(places) + len(among) == self.num_clients:
            return range(self.num_clients)
        return sorted([training[place] for place in places] + held_out[list(among)].tolist())


def check_held_out(value: int | float, num_clients: int) -> int | float:
    """Return ``value`` if it is a number or a share of clients that leaves one to train.

    Raises:
        ConfigError: It is not.

    Example:
        >>> check_held_out(0.1, num_clients=100)
        0.1
        >>> check_held_out(100, num_clients=100)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        fedlightning.errors.ConfigError: held_out_clients=100 leaves none of 100 clients to train...
    """
    count = isinstance(value, (int, np.integer)) and not isinstance(value, bool) and value >= 0
    share = isinstance(value, float) and 0 <= value < 1
    if not (count or share):
        raise ConfigError(
            f"held_out_clients must be a number of clients or a share in [0, 1), got {value!r}"
        )
    if value and (value >= num_clients or num_clients == 1):
        raise ConfigError(
            f"held_out_clients={value} leaves none of {num_clients} clients to train; lower it"
        )
    return int(value) if count else value
