"""A client that fails: what counts as a failure, and what the federation does about it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar, get_args

import torch

from fedlightning.core.tracebacks import place_of
from fedlightning.errors import (
    CheckpointError,
    ConfigError,
    EnvironmentFailure,
    FederationError,
    FedLightningError,
    WorkerLost,
)
from fedlightning.federation.update_checks import BadUpdate, Cause, _some

__all__ = [
    "Attempt",
    "ClientFailed",
    "ClientFailure",
    "Policy",
    "ServersOwn",
    "attempt",
    "count_clients",
    "require_enough",
]

Policy = Literal["fail", "skip", "retry"]
"""What a client's failure means: the run's end, a round without it, or another try."""


T = TypeVar("T")
_MOST = 500
_NOT_THE_CLIENTS = (
    ConfigError, CheckpointError, EnvironmentFailure, WorkerLost,
    MemoryError, torch.cuda.OutOfMemoryError,
)  # fmt: skip


@dataclass(frozen=True)
class ClientFailure:
    """One try of one client that gave no update; ``on_client_failure`` of callbacks gets it.

    Args:
        client: Client id.
        round: Round index, from 0.
        cause: Why.
        text: What happened, in words.
        retried: Whether the client gets another try.
        name: The client's name, if it has one.

    Example:
        >>> print(ClientFailure(3, 1, "exception", "ValueError: bad luck"))
        client 3, round 1: ValueError: bad luck
    """

    client: int
    round: int
    cause: Cause
    text: str
    retried: bool = False
    name: str = ""

    def __str__(self) -> str:
        name = f" ({self.name})" if self.name else ""
        return f"client {self.client}{name}, round {self.round}: {self.text}"


class ClientFailed(FederationError):
    """A client's failure that ends the run.

    Attributes:
        failure: Which client, in which round, and why.
    """

    def __init__(self, failure: ClientFailure, tries: int = 1) -> None:
        self.failure = failure
        super().__init__(f"{failure}{f' (after {tries} tries)' if tries > 1 else ''}")


@dataclass(frozen=True)
class Attempt(Generic[T]):
    """What became of one client.

    Args:
        client: Client id.
        result: Its training; ``None`` if it failed for good.
        failures: Its failed tries, in order.
        error: What the last of them raised, where that is known.
    """

    client: int
    result: T | None
    failures: tuple[ClientFailure, ...] = ()
    error: Exception | None = field(default=None, compare=False)

    def give_up(self) -> ClientFailed:
        """Return the error that ends the run because of this client."""
        failed = ClientFailed(self.failures[-1], len(self.failures))
        failed.__cause__ = self.error
        return failed


def attempt(
    client: int,
    round_index: int,
    retries: int,
    train: Callable[[int], T],
    start_over: Callable[[], None],
    name: str = "",
) -> Attempt[T]:
    """Train a client; try again, from the same start, while it fails and tries are left.

    Mistakes in the settings and trouble of the machine's are no client's failures: they end the
    run under any policy.

    Args:
        client: Client id.
        round_index: The round.
        retries: How many tries it gets after the first.
        train: Trains it. Random numbers must follow from client and round alone, so that a second
            try gives the bits that the first would have given.
        start_over: Undoes what a failed try has left.
        name: The client's name, if it has one.
    """
    failures: list[ClientFailure] = []
    for left in range(retries, -1, -1):
        try:
            return Attempt(client, train(client), tuple(failures))
        except _NOT_THE_CLIENTS:
            raise
        except ServersOwn as own:
            raise own.error from own.error.__cause__
        except Exception as error:
            start_over()
            cause: Cause = error.cause if isinstance(error, BadUpdate) else "exception"
            failures.append(
                ClientFailure(client, round_index, cause, _describe(error, client), left > 0, name)
            )
            last = error
    return Attempt(client, None, tuple(failures), last)


class ServersOwn(Exception):
    """Wraps what a callback raised during a client's turn: the server's trouble, not the client's.

    Args:
        error: What it raised.
    """

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


def require_enough(
    round_index: int, cohort: Sequence[int], outcomes: Iterable[Attempt[Any]], least: int
) -> None:
    """End the run if too few clients of a cohort have succeeded.

    Args:
        round_index: The round.
        cohort: Its clients.
        outcomes: What became of them.
        least: The least number of updates that make a round.

    Raises:
        FederationError: If there are fewer; names who failed and why.
    """
    failed = [outcome.failures[-1] for outcome in outcomes if outcome.result is None]
    succeeded = len(cohort) - len(failed)
    if succeeded >= least:
        return
    by_cause: dict[Cause, list[str]] = {}
    for failure in failed:
        by_cause.setdefault(failure.cause, []).append(str(failure.client))
    causes = "; ".join(
        f"{cause}: {'client' if len(ids) == 1 else 'clients'} {_some(ids)}"
        for cause, ids in by_cause.items()
    )
    raise FederationError(
        f"round {round_index}: {succeeded} of {len(cohort)} clients succeeded, "
        f"federation.min_clients={least}. {causes}. The first: {failed[0]}"
    )


def count_clients(outcomes: Sequence[Attempt[Any]]) -> dict[str, float]:
    """Return how many clients of a cohort were selected, succeeded, tried again, and failed why.

    Example:
        >>> failure = ClientFailure(2, 0, "timeout", "too late")
        >>> counts = count_clients([Attempt(1, "its training"), Attempt(2, None, (failure,))])
        >>> {name: value for name, value in counts.items() if value}
        {'clients/selected': 2.0, 'clients/succeeded': 1.0, 'clients/failed_timeout': 1.0}
    """
    failed = [outcome.failures[-1].cause for outcome in outcomes if outcome.result is None]
    return {
        "clients/selected": float(len(outcomes)),
        "clients/succeeded": float(len(outcomes) - len(failed)),
        "clients/retries": float(
            sum(failure.retried for outcome in outcomes for failure in outcome.failures)
        ),
        **{f"clients/failed_{cause}": float(failed.count(cause)) for cause in get_args(Cause)},
    }


def _describe(error: Exception, client: int) -> str:
    """Return an error as one line, without the client's name, which goes before it."""
    if isinstance(error, (FedLightningError, BadUpdate)):
        text = str(error).removeprefix(f"client {client}, ").removeprefix(f"client {client}: ")
    else:
        text = f"{type(error).__name__}: {error}".rstrip(": ")
    line = " ".join(text.split())
    short = line if len(line) <= _MOST else f"{line[:_MOST]} ..."
    return short if isinstance(error, BadUpdate) else short + place_of(error)
