"""Which clients make a round: a pure function of the seed and the round."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from fedlightning.core.arguments import NamedArguments
from fedlightning.core.seeding import Key
from fedlightning.core.validation import check_integer, check_number, is_number
from fedlightning.errors import ConfigError

__all__ = [
    "ClientSampler",
    "FixedCohorts",
    "PoissonSampler",
    "SeparatedSampler",
    "UniformSampler",
    "check_cohort_size",
    "choose",
    "cohort_count",
]


class ClientSampler(NamedArguments, ABC):
    """Chooses the cohort of a round.

    Attributes:
        anonymous: Whether one client is as good as another to it. Where clients are held out
            (``data.held_out_clients``) such a sampler is asked for places among those that train;
            any other one is told of all clients and must not choose those that are held out.
        sized: Whether it is told how many clients to choose. A sampler that decides that itself,
            anew for every cohort, needs ``federation.cohort_size: null``.
    """

    anonymous: ClassVar[bool] = False
    sized: ClassVar[bool] = True

    @abstractmethod
    def cohort(self, key: Key, population: int, size: int) -> tuple[int, ...]:
        """Return the cohort of round ``key.round``: client ids, in the order in which they train.

        Args:
            key: The round's random stream (purpose ``"cohort"``).
            population: Number of clients; ids are 0..population-1.
            size: Number of clients to choose; of no meaning to a sampler that is not ``sized``.
        """

    def expected(self, population: int) -> float:
        """Return the expected number of clients in a cohort, of a sampler that is not ``sized``."""
        raise NotImplementedError


class UniformSampler(ClientSampler):
    """Every client is equally likely, none twice; costs O(cohort) whatever the population.

    Example:
        >>> sampler = UniformSampler()
        >>> first = sampler.cohort(Key(0, "cohort", round=3), population=100, size=10)
        >>> len(set(first)), first == sampler.cohort(Key(0, "cohort", round=3), 100, 10)
        (10, True)
    """

    anonymous = True

    def cohort(self, key: Key, population: int, size: int) -> tuple[int, ...]:
        """Return ``size`` distinct clients drawn without replacement."""
        return tuple(key.numpy().choice(population, size=size, replace=False).tolist())


class PoissonSampler(ClientSampler):
    r"""Every client is in a cohort with probability ``q``, independently of all others.

    Cohorts have any size, none at all included: :math:`n \sim \text{Binomial}(N, q)`, then ``n``
    clients without replacement, which is the same and costs O(cohort). Theorems about privacy by
    sampling are about this sampler (:class:`~fedlightning.privacy.ClientDP`). A round of an empty
    cohort leaves the model as it is, but for the noise that privacy adds.

    Args:
        q: The probability, in (0, 1].

    Raises:
        ConfigError: If it is not in this range.

    Example:
        >>> sampler = PoissonSampler(q=0.05)
        >>> [len(sampler.cohort(Key(0, "cohort", round=r), 100, 0)) for r in range(6)]
        [5, 4, 6, 6, 6, 5]
        >>> sampler.expected(100)
        5.0
    """

    anonymous = True
    sized = False

    def __init__(self, q: float) -> None:
        self.q = float(check_number("federation.sampler.q", q, above=0, at_most=1))

    def cohort(self, key: Key, population: int, size: int) -> tuple[int, ...]:
        """Return the clients of a cohort, in random order."""
        generator = key.numpy()
        size = int(generator.binomial(population, self.q))
        return tuple(generator.choice(population, size=size, replace=False).tolist())

    def expected(self, population: int) -> float:
        """Return ``q * population``."""
        return self.q * population


class SeparatedSampler(ClientSampler):
    """A client takes part in one of every ``separation`` rounds at most.

    Each client has a place among them, drawn once and independently of all others, and takes part
    whenever its place comes, with probability ``q``. So two of its turns are ``separation`` rounds
    apart or more, which is what noise that is correlated between rounds needs
    (``ClientDP(bands=...)``). Costs O(population) a round.

    Args:
        separation: How many rounds lie between two turns of a client, >= 1.
        q: The probability of a turn when its place comes, in (0, 1].

    Raises:
        ConfigError: If a value is out of its range.

    Example:
        >>> sampler = SeparatedSampler(separation=4)
        >>> cohorts = [sampler.cohort(Key(0, "cohort", round=r), 100, 0) for r in range(4)]
        >>> sum(map(len, cohorts)), len(set().union(*cohorts)), sampler.expected(100)
        (100, 100, 25.0)
    """

    anonymous = True
    sized = False

    def __init__(self, separation: int, q: float = 1.0) -> None:
        self.separation = check_integer("federation.sampler.separation", separation, at_least=1)
        self.q = float(check_number("federation.sampler.q", q, above=0, at_most=1))

    def cohort(self, key: Key, population: int, size: int) -> tuple[int, ...]:
        """Return the clients whose turn it is, in random order."""
        places = Key(key.seed, "cohort", client=1).numpy().integers(0, self.separation, population)
        generator, turns = key.numpy(), np.flatnonzero(places == key.round % self.separation)
        size = int(generator.binomial(len(turns), self.q))
        return tuple(generator.choice(turns, size=size, replace=False).tolist())

    def expected(self, population: int) -> float:
        """Return ``q * population / separation``."""
        return self.q * population / self.separation


class FixedCohorts(ClientSampler):
    """Cohorts written down beforehand, one per round: for replaying a published run.

    Args:
        cohorts: Client ids of round 0, 1, ...
    """

    def __init__(self, cohorts: Sequence[Sequence[int]]) -> None:
        self.cohorts = [tuple(cohort) for cohort in cohorts]

    def cohort(self, key: Key, population: int, size: int) -> tuple[int, ...]:
        """Return the cohort that was given for this round.

        Raises:
            ConfigError: If no cohort was given for it, or it names a client that does not exist.
        """
        if key.round >= len(self.cohorts):
            raise ConfigError(
                f"no cohort for round {key.round}: only {len(self.cohorts)} are given."
            )
        chosen = self.cohorts[key.round]
        if len(set(chosen)) != len(chosen):
            raise ConfigError(f"cohort {list(chosen)} of round {key.round} names a client twice.")
        if not chosen or not all(0 <= client < population for client in chosen):
            raise ConfigError(
                f"cohort {list(chosen)} of round {key.round} is not within 0..{population - 1}."
            )
        return chosen


def choose(
    sampler: ClientSampler,
    key: Key,
    population: int,
    size: int,
    clients: Sequence[int] | None = None,
) -> tuple[int, ...]:
    """Return a sampler's cohort, made of clients that may be chosen; costs O(cohort).

    Args:
        sampler: Chooses.
        key: The round's random stream.
        population: Number of clients.
        size: Number of clients to choose.
        clients: Those that may be chosen, in ascending order; ``None`` means all.

    Raises:
        ConfigError: If a sampler that chooses clients by their ids has chosen another one.

    Example:
        >>> choose(FixedCohorts([[5, 0]]), Key(0, "cohort"), population=6, size=2)
        (5, 0)
        >>> sorted(choose(UniformSampler(), Key(0, "cohort"), 6, 2, clients=[1, 4]))
        [1, 4]
    """
    if clients is None or len(clients) == population:
        return sampler.cohort(key, population, size)
    if sampler.anonymous:
        return tuple(clients[place] for place in sampler.cohort(key, len(clients), size))
    cohort = sampler.cohort(key, population, size)
    for client in cohort:
        if client not in clients:
            raise ConfigError(
                f"{type(sampler).__name__} chose client {client} for round {key.round}, which "
                "data.held_out_clients holds out of training. A sampler to which all clients are "
                "alike sets anonymous=True and is asked for places among those that train."
            )
    return cohort


def cohort_count(cohort_size: int | float, population: int) -> int:
    """Return the number of clients a round: an int is a count, a float in (0, 1] a share.

    A share is rounded down, but to no less than one client, as FedAvg and FedBABU do. The product
    is that of floats: 0.29 of 100 clients are 28.

    Raises:
        ConfigError: If the count is not within 1..population, or the share not within (0, 1].

    Example:
        >>> cohort_count(0.1, population=100), cohort_count(5, 100), cohort_count(0.01, 20)
        (10, 5, 1)
    """
    check_cohort_size(cohort_size)
    if isinstance(cohort_size, float):
        return max(int(cohort_size * population), 1)
    if cohort_size > population:
        raise ConfigError(
            f"federation.cohort_size={cohort_size} is more than there are clients to train: "
            f"{population}."
        )
    return cohort_size


def check_cohort_size(cohort_size: int | float) -> None:
    """Refuse a cohort size that no population could have.

    Raises:
        ConfigError: If it is neither a count >= 1 nor a share in (0, 1].
    """
    if not is_number(cohort_size):
        raise ConfigError(f"federation.cohort_size must be a finite number, got {cohort_size!r}.")
    share = isinstance(cohort_size, float)
    if cohort_size <= 0 or (share and cohort_size > 1):
        raise ConfigError(
            "federation.cohort_size must be a number of clients >= 1 or a share in (0, 1], "
            f"got {cohort_size}."
        )
