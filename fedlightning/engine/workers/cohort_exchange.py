"""The updates of one commit trained by several workers, handed on in the order of aggregation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from zlib import crc32

import torch
from torch import Tensor

from fedlightning.core.messages import ClientUpdate
from fedlightning.core.metrics import LogFlags
from fedlightning.core.state import State
from fedlightning.engine.workers.collectives import Workers, longest_first
from fedlightning.errors import FederationError
from fedlightning.federation.failures import Attempt, ClientFailure
from fedlightning.federation.jobs import Job

__all__ = ["Trained", "dealt_out", "shares_of", "train_in_parallel"]

Layout = Mapping[str, tuple[tuple[int, ...], torch.dtype]]
_PAYLOAD = "payload"


@dataclass(frozen=True)
class Trained:
    """One client update, as its worker keeps it until all are done.

    Args:
        update: The update; its state is a copy.
        kept: What the client keeps.
        flags: Where its metrics are logged.
    """

    update: ClientUpdate
    kept: State
    flags: Mapping[str, LogFlags]


@dataclass(frozen=True)
class _Report:
    """What a worker tells the others of a job: everything but the tensors."""

    failures: tuple[ClientFailure, ...]
    update: ClientUpdate | None = None
    flags: Mapping[str, LogFlags] = field(default_factory=dict)
    state: Layout | None = None
    kept: Layout = field(default_factory=dict)
    extras: Layout = field(default_factory=dict)
    payload: Layout = field(default_factory=dict)


def shares_of(jobs: Sequence[Job], sizes: Sequence[int], workers: int) -> list[list[int]]:
    """Deal jobs out to workers by the work that they are; a client's jobs stay together.

    Args:
        jobs: The jobs of a commit, in their order.
        sizes: How much work each of them is.
        workers: Number of workers.

    Returns:
        The places of each worker's jobs, in ascending order.

    Example:
        >>> jobs = [Job(client, 0, position) for position, client in enumerate((4, 7, 4))]
        >>> shares_of(jobs, [1, 3, 1], workers=2)
        [[1], [0, 2]]
    """
    groups = _by_client(jobs)
    work = [sum(sizes[place] for place in group) for group in groups]
    return [
        sorted(place for group in share for place in groups[group])
        for share in longest_first(work, workers)
    ]


def dealt_out(
    jobs: Sequence[Job], sizes: Sequence[int], deal: Callable[[], int]
) -> Iterator[list[int]]:
    """Yield the places of one client's jobs after another's, as this worker asks for them.

    Args:
        jobs: The jobs of a commit, in their order.
        sizes: How much work each of them is; the longest come first.
        deal: Returns the next number that no worker has got yet.

    Example:
        >>> jobs = [Job(client, 0, position) for position, client in enumerate((4, 7, 4))]
        >>> list(dealt_out(jobs, [1, 3, 1], deal=iter([0, 1, 2]).__next__))
        [[1], [0, 2]]
    """
    groups = _by_client(jobs)
    groups.sort(key=lambda group: -sum(sizes[place] for place in group))
    while (number := deal()) < len(groups):
        yield groups[number]


def _by_client(jobs: Sequence[Job]) -> list[list[int]]:
    places: dict[int, list[int]] = {}
    for place, job in enumerate(jobs):
        places.setdefault(job.client, []).append(place)
    return list(places.values())


def train_in_parallel(
    workers: Workers,
    jobs: Sequence[Job],
    sizes: Sequence[int],
    train: Callable[[Job], Attempt[Trained]],
    shared: Mapping[str, Tensor],
    device: torch.device,
    skip: bool,
    told_to_stop: Callable[[], bool] = lambda: False,
    apart: bool = False,
    deal: Callable[[], int] | None = None,
) -> Iterator[Attempt[Trained]]:
    """Train this worker's jobs, then hand on every job's update in order.

    Every worker gets the same, so every worker's aggregation adds the same numbers in the same
    order as a single process does. All workers have heard of all failures before the first update
    is sent.

    Args:
        workers: The processes.
        jobs: The jobs of a commit.
        sizes: How much work each of them is.
        train: Trains one client.
        shared: Tensors like a client's shared part.
        device: Where tensors are sent from and received.
        skip: Whether to continue without the clients that failed. Otherwise the first of them in
            order is all that is handed on.
        told_to_stop: Whether to leave the rest of this worker's jobs alone: the caller stops on
            all workers then.
        apart: Whether each worker gets the tensors of its own updates alone (and what clients keep
            of all): it adds them, and the sums are added afterwards.
        deal: Deals clients out while the commit is under way (see :func:`dealt_out`), where
            workers are not equally fast; by default shares are fixed before.
    """
    mine: dict[int, Attempt[Trained]] = {}
    share = (
        iter([shares_of(jobs, sizes, workers.size)[workers.rank]])
        if deal is None
        else dealt_out(jobs, sizes, deal)
    )
    for position in (place for places in share for place in places):
        if told_to_stop():
            break
        mine[position] = train(jobs[position])
        if mine[position].result is None and not skip:
            break
    reports: dict[int, _Report] = {}
    owner: dict[int, int] = {}
    told = {at: _report(attempt, shared) for at, attempt in mine.items()}
    plan = crc32(repr([(job.client, job.version) for job in jobs]).encode())
    for rank, (others_plan, others) in enumerate(workers.gather((plan, told))):
        if others_plan != plan:
            raise FederationError(
                f"worker {rank} trains other clients than worker {workers.rank}: they are in "
                "different rounds; a callback must stop a run on all workers or on none."
            )
        reports |= others
        owner |= dict.fromkeys(others, rank)
    failed = sorted(at for at, report in reports.items() if report.update is None)
    if failed and not skip:
        at = failed[0]
        own = mine.get(at)
        error = own.error if own is not None else None
        return iter([Attempt(jobs[at].client, None, reports[at].failures, error)])
    return _in_order(workers, jobs, owner, mine, reports, shared, device, apart)


def _in_order(
    workers: Workers,
    jobs: Sequence[Job],
    owner: Mapping[int, int],
    mine: dict[int, Attempt[Trained]],
    reports: Mapping[int, _Report],
    shared: Mapping[str, Tensor],
    device: torch.device,
    apart: bool,
) -> Iterator[Attempt[Trained]]:
    for position, job in enumerate(jobs):
        own, report = mine.pop(position, None), reports[position]
        if report.update is None:
            error = own.error if own is not None else None
            yield Attempt(job.client, None, report.failures, error)
            continue
        mine_too = own.result if own is not None else None
        if apart:
            kept = workers.send(
                None if mine_too is None else mine_too.kept,
                _room(report.kept, device),
                owner[position],
            )
            names = {key: torch.empty(0) for key in report.extras}
            light = replace(report.update, extras=names, elsewhere=True)
            update = light if mine_too is None else mine_too.update
            yield Attempt(job.client, Trained(update, kept, report.flags), report.failures)
            continue
        tensors: tuple[State | None, ...] = (None, None, None, None)
        if mine_too is not None:
            update = mine_too.update
            tensors = dict(update.state), mine_too.kept, dict(update.extras), _payload(update)

        rooms = (
            shared if report.state is None else _room(report.state, device),
            _room(report.kept, device),
            _room(report.extras, device),
            _room(report.payload, device),
        )
        state, kept, extras, payload = (
            workers.send(values, room, owner[position])
            for values, room in zip(tensors, rooms, strict=True)
        )
        whole = replace(report.update, state=state, extras=extras, payload=payload.get(_PAYLOAD))
        yield Attempt(job.client, Trained(whole, kept, report.flags), report.failures)


def _report(attempt: Attempt[Trained], shared: Mapping[str, Tensor]) -> _Report:
    if attempt.result is None:
        return _Report(attempt.failures)
    update = attempt.result.update
    return _Report(
        attempt.failures,
        replace(update, state={}, extras={}, payload=None),
        attempt.result.flags,
        None if update.state.keys() == shared.keys() else _layout(update.state),
        _layout(attempt.result.kept),
        _layout(update.extras),
        _layout(_payload(update)),
    )


def _payload(update: ClientUpdate) -> State:
    return {} if update.payload is None else {_PAYLOAD: update.payload}


def _layout(state: Mapping[str, Tensor]) -> Layout:
    return {name: (tuple(value.shape), value.dtype) for name, value in state.items()}


def _room(layout: Layout, device: torch.device) -> State:
    return {
        name: torch.empty(shape, dtype=dtype, device=device)
        for name, (shape, dtype) in layout.items()
    }
