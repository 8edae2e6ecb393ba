"""How the updates of a commit are trained: one by one, with several workers, in order."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from pytorch_lightning.utilities import rank_zero_warn

from fedlightning.core.messages import ClientUpdate
from fedlightning.core.metrics import LogFlags, Metrics
from fedlightning.core.state import State
from fedlightning.datamodules.loaders import ClientTask
from fedlightning.engine.workers.cohort_exchange import Trained, shares_of, train_in_parallel
from fedlightning.engine.workers.collectives import Workers
from fedlightning.federation.failures import Attempt, attempt, count_clients, require_enough
from fedlightning.federation.jobs import Job
from fedlightning.federation.server import Server
from fedlightning.federation.settings import Federation

__all__ = ["Executor", "RoundEvents", "SerialExecutor", "Trains", "WorkerExecutor", "outputs_of"]


class RoundEvents(Protocol):
    """Hears what happens in a round; to callbacks, a client update is a train batch."""

    def client_starts(self, task: ClientTask, position: int) -> None:
        """A client update starts."""

    def client_ends(
        self, outputs: Mapping[str, Any], task: ClientTask, position: int, counts: bool = True
    ) -> None:
        """A client update is done; it ``counts`` if it gave something to merge."""

    def fire(self, hook: str, *args: Any) -> None:
        """Call a hook of federated callbacks."""

    def stop_if_told_to(self) -> None:
        """Stop the run after a SIGTERM to any of the workers."""

    def told_to_stop(self) -> bool:
        """Whether this worker has received a SIGTERM."""


class Trains(Protocol):
    """Trains one client at a time on this process's resident module."""

    def plan(self, jobs: Sequence[Job]) -> None:
        """Hear which jobs come next."""

    def train(self, job: Job, kept: State | None) -> Trained:
        """Train a client; the update's state is a view of the resident module.

        Args:
            job: Which client, from which version.
            kept: What it keeps from an earlier update of the same commit, if there was one.
        """

    def reset(self) -> None:
        """Make the module the global model again."""

    def forget(self) -> None:
        """Undo an update that failed."""

    def shared(self) -> State:
        """Return the shared part as it is in the module."""

    def num_examples(self, client: int) -> int:
        """Return how many training examples a client has."""


class Executor(ABC):
    """Trains the jobs of one commit and hands on their updates, in the order of aggregation.

    Args:
        federation: The policy for clients that fail.
        clients: Trains them.
        events: Hears of each.
        workers: The processes that share the work.
        names: The clients' names, if they have any.

    Attributes:
        attempts: What became of each job of the commit under way, in order.
        kept: What the clients of the commit keep, by client.
        apart: Whether each worker hands on the tensors of its own clients' updates alone.
    """

    def __init__(
        self,
        federation: Federation,
        clients: Trains,
        events: RoundEvents,
        workers: Workers,
        names: Sequence[str] | None = None,
    ) -> None:
        self._federation = federation
        self._clients = clients
        self._events = events
        self._workers = workers
        self._names = names
        self.attempts: list[Attempt[Trained]] = []
        self.kept: dict[int, State] = {}
        self.apart = False
        self._dealt = 0

    def run(self, jobs: Sequence[Job], commit: int, least: int) -> Iterator[ClientUpdate]:
        """Yield the updates of a commit's jobs, each valid until the next is asked for.

        Args:
            jobs: The jobs, in the order of aggregation.
            commit: The number of the commit, for messages.
            least: How many of them must succeed.

        Raises:
            FederationError: (while they are read) A client failed and the policy is not to
                continue without it, or too few clients are left.
        """
        self.attempts, self.kept = [], {}
        yield from self._updates(jobs, commit)
        self._workers.announce(None, commit)
        require_enough(commit, [job.client for job in jobs], self.attempts, least)

    def combine(self, server: Server) -> None:
        """Add what other processes have received to what the server has."""
        server.combine(self._workers.gather, self._workers.add_up)

    def finish(self) -> Metrics:
        """Forget the commit; return what its clients logged, on average, and how many failed."""
        metrics = self._metrics()
        self.attempts, self.kept = [], {}
        return metrics

    def _metrics(self) -> Metrics:
        received = [done.result for done in self.attempts if done.result is not None]
        fails = self._federation.on_client_failure == "fail"
        counts = {} if fails else count_clients(self.attempts)
        down = received[0].update.bytes_down if received else 0
        traffic = {
            "communication/bytes_up": float(sum(t.update.bytes_up for t in received)),
            "communication/bytes_down": float(
                sum(t.update.bytes_down for t in received)
                + down * (len(self.attempts) - len(received))
            ),
        }
        return {
            **_mean_metrics(received),
            **{name: (value, LogFlags()) for name, value in {**counts, **traffic}.items()},
        }

    @abstractmethod
    def _updates(self, jobs: Sequence[Job], commit: int) -> Iterator[ClientUpdate]:
        """Yield the updates, noting what became of each job."""

    def _try(self, job: Job, commit: int) -> Attempt[Trained]:
        """Train a client, and again while the federation's policy says so."""
        done = attempt(
            job.client,
            commit,
            self._federation.retries,
            lambda client: self._clients.train(job, self.kept.get(client)),
            self._clients.forget,
            self._names[job.client] if self._names is not None else "",
        )
        if done.result is not None and done.result.kept:
            self.kept[job.client] = done.result.kept
        return done

    def _note(self, done: Attempt[Trained]) -> None:
        """Report a client's failures; raise if the policy is not to continue without it."""
        self.attempts.append(done)
        policy = self._federation.on_client_failure
        for failure in done.failures:
            if policy == "skip" or failure.retried:
                rank_zero_warn(f"{failure} ({'tried again' if failure.retried else 'skipped'})")
            self._events.fire("on_client_failure", failure)
        if done.result is None and policy != "skip":
            raise done.give_up()

    def _sizes(self, jobs: Sequence[Job]) -> list[int]:
        return [self._clients.num_examples(job.client) for job in jobs]

    def _task(self, job: Job) -> ClientTask:
        return ClientTask(job.client, "train", self._clients.num_examples(job.client))


class SerialExecutor(Executor):
    """Trains one client after another, as fast as their updates are asked for."""

    def _updates(self, jobs: Sequence[Job], commit: int) -> Iterator[ClientUpdate]:
        self._clients.plan(jobs)
        for position, job in enumerate(jobs):
            task = self._task(job)
            self._events.client_starts(task, position)
            try:
                done = self._try(job, commit)
                self._note(done)
                if done.result is not None:
                    yield done.result.update
            finally:
                self._clients.reset()
            self._events.client_ends(
                outputs_of(done), task, position, counts=done.result is not None
            )


class WorkerExecutor(Executor):
    """Trains with all workers; then events and updates come in order on every one of them."""

    def _updates(self, jobs: Sequence[Job], commit: int) -> Iterator[ClientUpdate]:
        sizes = self._sizes(jobs)
        deal = None
        if self._federation.clients_per_kernel == 1:
            self._dealt += 1
            deal = self._workers.counter(f"commit {commit}, {self._dealt}")
        if deal is None:
            mine = shares_of(jobs, sizes, self._workers.size)[self._workers.rank]
            self._clients.plan([jobs[position] for position in mine])

        def train(job: Job) -> Attempt[Trained]:
            try:
                done = self._try(job, commit)
                if done.result is None:
                    return done
                update = done.result.update
                state = {key: value.clone() for key, value in update.state.items()}
                return replace(
                    done, result=replace(done.result, update=replace(update, state=state))
                )
            finally:
                self._clients.reset()
                self._events.fire("on_client_trained")

        shared = self._clients.shared()
        device = next((value.device for value in shared.values()), torch.device("cpu"))
        trainings = train_in_parallel(
            self._workers,
            jobs,
            sizes,
            train,
            shared,
            device,
            skip=self._federation.on_client_failure == "skip",
            told_to_stop=self._events.told_to_stop,
            apart=self.apart,
            deal=deal,
        )
        self._events.stop_if_told_to()
        for position, done in enumerate(trainings):
            task, trained = self._task(jobs[position]), done.result
            if trained is None:
                task = self._task(replace(jobs[position], client=done.client))
            self._events.client_starts(task, position)
            light = trained and replace(trained, update=replace(trained.update, state={}))
            if trained is not None and trained.kept:
                self.kept[done.client] = trained.kept
            self._note(replace(done, result=light))
            if trained is not None:
                yield trained.update
            self._events.client_ends(outputs_of(done), task, position, counts=trained is not None)


def outputs_of(done: Attempt[Trained]) -> dict[str, Any]:
    """Return what ``on_train_batch_end`` gets; of a client that failed, its failure."""
    if done.result is not None:
        return done.result.update.outputs
    nothing = ClientUpdate(done.client, {}, 0).outputs
    return {**nothing, "failure": done.failures[-1]}


def _mean_metrics(received: list[Trained]) -> Metrics:
    """Average the clients' metrics over the commit's examples.

    A client whose value is nan is left out and counted, as in every mean over clients.
    """
    metrics: dict[str, tuple[float, LogFlags]] = {}
    for name, flags in {n: f for trained in received for n, f in trained.flags.items()}.items():
        logged = [trained.update for trained in received if name in trained.update.metrics]
        known = [update for update in logged if not math.isnan(update.metrics[name])]
        weight = sum(update.num_examples for update in known)
        if weight:
            total = sum(update.metrics[name] * update.num_examples for update in known)
            metrics[name] = (total / weight, flags)
        elif logged:
            metrics[name] = (math.nan, flags)
        if len(known) < len(logged):
            metrics[f"{name}_undefined"] = (float(len(logged) - len(known)), LogFlags())
    return metrics
