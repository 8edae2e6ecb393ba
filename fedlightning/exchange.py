"""A cohort trained by several workers, its updates handed on in cohort order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from fedlightning.algorithms import ClientUpdate
from fedlightning.faults import ClientFailure, Outcome
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
    """What a worker tells the others of a client: everything but the tensors."""

    failures: tuple[ClientFailure, ...]
    succeeded: bool
    num_examples: int = 0
    steps: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    flags: Mapping[str, LogFlags] = field(default_factory=dict)


def train_in_parallel(
    workers: Workers,
    cohort: Sequence[int],
    sizes: Sequence[int],
    train: Callable[[int], Outcome[Trained]],
    shared: Mapping[str, Tensor],
    kept: Mapping[str, Tensor],
    skip: bool,
    told_to_stop: Callable[[], bool] = lambda: False,
) -> Iterator[Outcome[Trained]]:
    """Train this worker's clients, then hand on every client's training in cohort order.

    Every worker gets the same, so every worker's aggregation adds the same numbers in the same
    order as a single process does. All workers have heard of all failures before the first update
    is sent.

    Args:
        workers: The processes.
        cohort: Client ids.
        sizes: How much work each of them is.
        train: Trains one client.
        shared: Tensors like a client's shared part.
        kept: Tensors like the part that a client keeps.
        skip: Whether to go on without the clients that failed. Otherwise the first of them in the
            cohort is all that is handed on.
        told_to_stop: Whether to leave the rest of this worker's clients alone: the caller stops on
            all workers then.
    """
    shares = longest_first(sizes, workers.size)
    mine: dict[int, Outcome[Trained]] = {}
    for position in shares[workers.rank]:
        if told_to_stop():
            break
        mine[position] = train(cohort[position])
        if mine[position].result is None and not skip:
            break
    reports: dict[int, _Report] = {}
    for others in workers.gather({at: _report(outcome) for at, outcome in mine.items()}):
        reports |= others
    failed = sorted(at for at, report in reports.items() if not report.succeeded)
    if failed and not skip:
        at = failed[0]
        own = mine.get(at)
        error = own.error if own is not None else None
        return iter([Outcome(cohort[at], None, reports[at].failures, error)])
    return _in_cohort_order(workers, cohort, shares, mine, reports, shared, kept)


def _in_cohort_order(
    workers: Workers,
    cohort: Sequence[int],
    shares: list[list[int]],
    mine: dict[int, Outcome[Trained]],
    reports: Mapping[int, _Report],
    shared: Mapping[str, Tensor],
    kept: Mapping[str, Tensor],
) -> Iterator[Outcome[Trained]]:
    owner = {position: rank for rank, share in enumerate(shares) for position in share}
    for position, client in enumerate(cohort):
        own, report = mine.pop(position, None), reports[position]
        if not report.succeeded:
            yield Outcome(client, None, report.failures, own.error if own is not None else None)
            continue
        trained = own.result if own is not None else None
        state = workers.send(
            dict(trained.update.state) if trained is not None else None, shared, owner[position]
        )
        own_part = (
            workers.send(trained.kept if trained is not None else None, kept, owner[position])
            if kept
            else {}
        )
        update = ClientUpdate(client, state, report.num_examples, report.steps, report.metrics)
        yield Outcome(client, Trained(update, own_part, report.flags), report.failures)


def _report(outcome: Outcome[Trained]) -> _Report:
    if outcome.result is None:
        return _Report(outcome.failures, succeeded=False)
    update, flags = outcome.result.update, outcome.result.flags
    return _Report(outcome.failures, True, update.num_examples, update.steps, update.metrics, flags)
