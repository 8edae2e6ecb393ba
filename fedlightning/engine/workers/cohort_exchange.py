"""A cohort trained by several workers, its updates handed on in cohort order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedlightning.algorithms import ClientUpdate
from fedlightning.core.metrics import LogFlags
from fedlightning.core.state import State
from fedlightning.engine.frozen import FrozenChanged
from fedlightning.engine.workers.collectives import Workers, longest_first
from fedlightning.federation.failures import Attempt, ClientFailure

__all__ = ["Trained", "train_in_parallel"]


Layout = Mapping[str, tuple[tuple[int, ...], torch.dtype]]


@dataclass(frozen=True)
class Trained:
    """One client's training, as its worker keeps it until all are done.

    Args:
        update: The update; its state is a copy.
        kept: What the client keeps.
        flags: Where its metrics shall be logged.
        changed: Keys that are not shared because they are frozen, and that it has changed.
    """

    update: ClientUpdate
    kept: State
    flags: Mapping[str, LogFlags]
    changed: frozenset[str] = frozenset()


@dataclass(frozen=True)
class _Report:
    """What a worker tells the others of a client: everything but the tensors."""

    failures: tuple[ClientFailure, ...]
    succeeded: bool
    num_examples: int = 0
    steps: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    flags: Mapping[str, LogFlags] = field(default_factory=dict)
    bytes_up: int = 0
    bytes_down: int = 0
    kept: Layout = field(default_factory=dict)
    extras: Layout = field(default_factory=dict)
    changed: frozenset[str] = frozenset()


def train_in_parallel(
    workers: Workers,
    cohort: Sequence[int],
    sizes: Sequence[int],
    train: Callable[[int], Attempt[Trained]],
    shared: Mapping[str, Tensor],
    device: torch.device,
    skip: bool,
    told_to_stop: Callable[[], bool] = lambda: False,
) -> Iterator[Attempt[Trained]]:
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
        device: Where tensors are sent from and received.
        skip: Whether to go on without the clients that failed. Otherwise the first of them in the
            cohort is all that is handed on.
        told_to_stop: Whether to leave the rest of this worker's clients alone: the caller stops on
            all workers then.

    Raises:
        FrozenChanged: A client has changed frozen parameters that are not shared.
    """
    shares = longest_first(sizes, workers.size)
    mine: dict[int, Attempt[Trained]] = {}
    for position in shares[workers.rank]:
        if told_to_stop():
            break
        mine[position] = train(cohort[position])
        if mine[position].result is None and not skip:
            break
    reports: dict[int, _Report] = {}
    for others in workers.gather({at: _report(outcome) for at, outcome in mine.items()}):
        reports |= others
    if changed := frozenset().union(*(report.changed for report in reports.values())):
        raise FrozenChanged(changed)
    failed = sorted(at for at, report in reports.items() if not report.succeeded)
    if failed and not skip:
        at = failed[0]
        own = mine.get(at)
        error = own.error if own is not None else None
        return iter([Attempt(cohort[at], None, reports[at].failures, error)])
    return _in_cohort_order(workers, cohort, shares, mine, reports, shared, device)


def _in_cohort_order(
    workers: Workers,
    cohort: Sequence[int],
    shares: list[list[int]],
    mine: dict[int, Attempt[Trained]],
    reports: Mapping[int, _Report],
    shared: Mapping[str, Tensor],
    device: torch.device,
) -> Iterator[Attempt[Trained]]:
    owner = {position: rank for rank, share in enumerate(shares) for position in share}
    for position, client in enumerate(cohort):
        own, report = mine.pop(position, None), reports[position]
        if not report.succeeded:
            yield Attempt(client, None, report.failures, own.error if own is not None else None)
            continue
        trained = own.result if own is not None else None
        source = owner[position]
        state = workers.send(
            dict(trained.update.state) if trained is not None else None, shared, source
        )
        kept = workers.send(
            trained.kept if trained is not None else None, _room(report.kept, device), source
        )
        extras = workers.send(
            dict(trained.update.extras) if trained is not None else None,
            _room(report.extras, device),
            source,
        )
        update = ClientUpdate(
            client, state, report.num_examples, report.steps, report.metrics, extras,
            bytes_up=report.bytes_up, bytes_down=report.bytes_down,
        )  # fmt: skip
        yield Attempt(client, Trained(update, kept, report.flags), report.failures)


def _report(outcome: Attempt[Trained]) -> _Report:
    if outcome.result is None:
        return _Report(outcome.failures, succeeded=False)
    update = outcome.result.update
    return _Report(
        outcome.failures,
        True,
        update.num_examples,
        update.steps,
        update.metrics,
        outcome.result.flags,
        update.bytes_up,
        update.bytes_down,
        _layout(outcome.result.kept),
        _layout(update.extras),
        outcome.result.changed,
    )


def _layout(state: Mapping[str, Tensor]) -> Layout:
    return {name: (tuple(value.shape), value.dtype) for name, value in state.items()}


def _room(layout: Layout, device: torch.device) -> State:
    return {
        name: torch.empty(shape, dtype=dtype, device=device)
        for name, (shape, dtype) in layout.items()
    }
