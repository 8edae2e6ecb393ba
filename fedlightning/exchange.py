"""A cohort trained by several workers, its updates handed on in cohort order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from fedlightning.algorithms import ClientUpdate
from fedlightning.errors import FederationError
from fedlightning.local_log import LogFlags
from fedlightning.parts import State
from fedlightning.workers import Workers, longest_first

__all__ = ["Trained", "train_in_parallel"]


@dataclass(frozen=True)
class Trained:
    """One client's training, as its worker keeps it until all are done.

    Args:
        update: The update; its state is a copy.
        kept: What the client keeps.
        flags: Where its metrics shall be logged.
    """

    update: ClientUpdate
    kept: State
    flags: Mapping[str, LogFlags]


@dataclass(frozen=True)
class _Report:
    """What a worker tells the others: everything but the tensors."""

    num_examples: int
    steps: int
    metrics: Mapping[str, float]
    flags: Mapping[str, LogFlags]


def train_in_parallel(
    workers: Workers,
    cohort: Sequence[int],
    sizes: Sequence[int],
    train: Callable[[int], Trained],
    shared: Mapping[str, Tensor],
    kept: Mapping[str, Tensor],
) -> Iterator[Trained]:
    """Train this worker's clients, then hand on every client's training in cohort order.

    Every worker gets the same, so every worker's aggregation adds the same numbers in the same
    order as a single process does.

    Args:
        workers: The processes.
        cohort: Client ids.
        sizes: How much work each of them is.
        train: Trains one client.
        shared: Tensors like a client's shared part.
        kept: Tensors like the part that a client keeps.

    Raises:
        FederationError: If a client failed on any worker: on all of them, the first in the cohort.
    """
    shares = longest_first(sizes, workers.size)
    mine: dict[int, Trained] = {}
    failure: tuple[int, Exception] | None = None
    for position in shares[workers.rank]:
        try:
            mine[position] = train(cohort[position])
        except Exception as error:
            failure = position, error
            break
    _agree_on_failure(workers, cohort, failure)
    return _in_cohort_order(workers, cohort, shares, mine, shared, kept)


def _in_cohort_order(
    workers: Workers,
    cohort: Sequence[int],
    shares: list[list[int]],
    mine: dict[int, Trained],
    shared: Mapping[str, Tensor],
    kept: Mapping[str, Tensor],
) -> Iterator[Trained]:
    reports: dict[int, _Report] = {}
    own = {
        position: _Report(
            trained.update.num_examples, trained.update.steps, trained.update.metrics, trained.flags
        )
        for position, trained in mine.items()
    }
    for others in workers.gather(own):
        reports |= others
    owner = {position: rank for rank, share in enumerate(shares) for position in share}
    for position, client in enumerate(cohort):
        trained, report = mine.pop(position, None), reports[position]
        state = workers.send(
            dict(trained.update.state) if trained is not None else None, shared, owner[position]
        )
        own_part = (
            workers.send(trained.kept if trained is not None else None, kept, owner[position])
            if kept
            else {}
        )
        update = ClientUpdate(client, state, report.num_examples, report.steps, report.metrics)
        yield Trained(update, own_part, report.flags)


def _agree_on_failure(
    workers: Workers, cohort: Sequence[int], failure: tuple[int, Exception] | None
) -> None:
    """Raise on every worker if a client failed on one, so that none of them waits in vain."""
    told = None if failure is None else (failure[0], f"{type(failure[1]).__name__}: {failure[1]}")
    failures = [
        (position, rank, text)
        for rank, failed in enumerate(workers.gather(told))
        if failed is not None
        for position, text in [failed]
    ]
    if not failures:
        return
    position, rank, text = min(failures)
    if failure is not None and rank == workers.rank:
        raise failure[1]
    raise FederationError(f"client {cohort[position]} failed on worker {rank}: {text}")
