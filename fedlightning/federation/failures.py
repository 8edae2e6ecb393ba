"""A client that fails: what counts as a failure, and what the federation does about it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar, get_args

import torch
from torch import Tensor

from fedlightning.errors import (
    CheckpointError,
    ConfigError,
    EnvironmentFailure,
    FederationError,
    FedLightningError,
    WorkerLost,
)
from fedlightning.core.parts import first_non_finite, first_without_norm
from fedlightning.core.tracebacks import place_of

__all__ = [
    "BadUpdate",
    "Cause",
    "ClientFailed",
    "ClientFailure",
    "Outcome",
    "Policy",
    "ServersOwn",
    "attempt",
    "check_tensors",
    "check_weight",
    "count_clients",
    "require_enough",
]

Policy = Literal["fail", "skip", "retry"]
"""What a client's failure means: the run's end, a round without it, or another try."""

Cause = Literal["exception", "non_finite", "bad_update", "bad_weight", "timeout"]
"""Why an update was not taken."""

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

    Example:
        >>> print(ClientFailure(3, 1, "exception", "ValueError: bad luck"))
        client 3, round 1: ValueError: bad luck
    """

    client: int
    round: int
    cause: Cause
    text: str
    retried: bool = False

    def __str__(self) -> str:
        return f"client {self.client}, round {self.round}: {self.text}"


class ClientFailed(FederationError):
    """A client's failure that ends the run.

    Attributes:
        failure: Which client, in which round, and why.
    """

    def __init__(self, failure: ClientFailure, tries: int = 1) -> None:
        self.failure = failure
        super().__init__(f"{failure}{f' (after {tries} tries)' if tries > 1 else ''}")


class BadUpdate(Exception):
    """A client's work that came to an end, but not to an update that can be merged.

    Args:
        cause: Why.
        text: What is wrong with it.
    """

    def __init__(self, cause: Cause, text: str) -> None:
        super().__init__(text)
        self.cause: Cause = cause


@dataclass(frozen=True)
class Outcome(Generic[T]):
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
) -> Outcome[T]:
    """Train a client; try again, from the same start, while it fails and tries are left.

    Mistakes in the settings and trouble of the machine's are no client's failures: they end the
    run, whatever the policy.

    Args:
        client: Client id.
        round_index: The round.
        retries: How many tries it gets after the first.
        train: Trains it. Random numbers must follow from client and round alone, so that a second
            try gives the bits that the first would have given.
        start_over: Undoes what a failed try has left.
    """
    failures: list[ClientFailure] = []
    for left in range(retries, -1, -1):
        try:
            return Outcome(client, train(client), tuple(failures))
        except _NOT_THE_CLIENTS:
            raise
        except ServersOwn as own:
            raise own.error from own.error.__cause__
        except Exception as error:
            start_over()
            cause: Cause = error.cause if isinstance(error, BadUpdate) else "exception"
            failures.append(
                ClientFailure(client, round_index, cause, _describe(error, client), left > 0)
            )
            last = error
    return Outcome(client, None, tuple(failures), last)


class ServersOwn(Exception):
    """Wraps what a callback raised during a client's turn: the server's trouble, not the client's.

    Args:
        error: What it raised.
    """

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


def check_tensors(state: Mapping[str, Any], like: Mapping[str, Tensor], steps: int) -> None:
    """Refuse an update that differs from the global model in more than its values.

    Args:
        state: The update.
        like: The global model's tensors of the same part.
        steps: Optimizer steps that led to it, for the message.

    Raises:
        BadUpdate: If keys, shapes or dtypes differ, or a value is NaN, infinite, or so large that
            its square is.

    Example:
        >>> import torch
        >>> check_tensors({"w": torch.ones(3)}, {"w": torch.ones(2)}, steps=1)
        Traceback (most recent call last):
        fedlightning.federation.failures.BadUpdate: shapes differ: w of its update is (3,), ... model's is (2,)
    """
    if missing := [key for key in like if key not in state]:
        raise BadUpdate("bad_update", f"its update lacks {_some(missing)}")
    if extra := [key for key in state if key not in like]:
        raise BadUpdate("bad_update", f"its update has {_some(extra)}, which is not shared")
    for key, model in like.items():
        value = state[key]
        if not isinstance(value, Tensor):
            raise BadUpdate(
                "bad_update", f"{key} of its update is no tensor but a {type(value).__name__}"
            )
        for what, got, wanted in (
            ("shapes", tuple(value.shape), tuple(model.shape)),
            ("dtypes", value.dtype, model.dtype),
        ):
            if got != wanted:
                raise BadUpdate(
                    "bad_update",
                    f"{what} differ: {key} of its update is {got}, the global model's is {wanted}",
                )
    if (bad := first_without_norm(state)) is not None:
        what = bad if first_non_finite({bad: state[bad]}) else f"the norm of {bad}"
        raise BadUpdate(
            "non_finite",
            f"{what} of its update is non-finite after {steps} steps; lower the learning rate or "
            "set trainer.gradient_clip_val.",
        )


def check_weight(num_examples: int, weight: float) -> None:
    """Refuse a weight that would spoil a mean.

    Raises:
        BadUpdate: If a number is not finite or not > 0.
    """
    for name, value in (("number of examples", num_examples), ("weight", weight)):
        if not (value > 0 and math.isfinite(value)):
            raise BadUpdate("bad_weight", f"its {name} must be a finite number > 0, got {value}")


def require_enough(
    round_index: int, cohort: Sequence[int], outcomes: Iterable[Outcome[Any]], least: int
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


def count_clients(outcomes: Sequence[Outcome[Any]]) -> dict[str, float]:
    """Return how many clients of a cohort were selected, succeeded, tried again, and failed why.

    Example:
        >>> failure = ClientFailure(2, 0, "timeout", "too late")
        >>> counts = count_clients([Outcome(1, "its training"), Outcome(2, None, (failure,))])
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


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
