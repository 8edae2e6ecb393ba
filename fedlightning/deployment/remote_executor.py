"""Training at the clients' nodes, behind the same interface as training here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch

from fedlightning.core.messages import ClientUpdate
from fedlightning.core.state import State
from fedlightning.deployment.exchange import exchange_of
from fedlightning.deployment.messages import (
    Answer,
    Nodes,
    Order,
    Phase,
    Receipt,
    digest_of,
    raise_error,
)
from fedlightning.engine.executor import Executor, RoundEvents, Trains, outputs_of
from fedlightning.engine.workers.cohort_exchange import Trained
from fedlightning.engine.workers.collectives import Workers
from fedlightning.federation.failures import Attempt, ClientFailure
from fedlightning.federation.jobs import Job
from fedlightning.federation.server import Server
from fedlightning.federation.settings import Federation

__all__ = ["RemoteExecutor", "receipt_in", "receipt_of"]

_RUN, _STREAM = "deployment/run", "deployment/stream"


def receipt_of(receipt: Receipt) -> State:
    """Return a receipt as the server stores it, in the place of what the client keeps.

    Example:
        >>> receipt_in(receipt_of(Receipt(run=12, stream=3)))
        Receipt(run=12, stream=3)
    """
    return {_RUN: torch.tensor(receipt.run), _STREAM: torch.tensor(receipt.stream)}


def receipt_in(state: State | None) -> Receipt | None:
    """Return the receipt that :func:`receipt_of` has made, if there is one."""
    return None if not state else Receipt(int(state[_RUN]), int(state[_STREAM]))


class RemoteExecutor(Executor):
    """Sends the jobs of a commit to the clients' nodes; then events and updates come in order.

    An answer may have come already, together with an evaluation. It counts if the order was the
    same to the last bit.

    Args:
        federation: The policy for clients that fail.
        clients: Knows how many examples they have.
        events: Hears of each.
        workers: This process.
        nodes: Carries orders and answers.
        order: Returns the order for a job, given the state that its client starts from if that is
            not the stored one.
    """

    def __init__(
        self,
        federation: Federation,
        clients: Trains,
        events: RoundEvents,
        workers: Workers,
        nodes: Nodes,
        order: Callable[[Job, Receipt | None], Order],
    ) -> None:
        super().__init__(federation, clients, events, workers)
        self._nodes = nodes
        self._order = order
        self._early: dict[Job, tuple[str, Answer]] = {}
        self._exchange = exchange_of(federation)
        self._phases: Mapping[int, Phase] = {}
        self._orders: dict[int, Order] = {}
        self.apart = self._exchange is not None

    @property
    def may_start_early(self) -> bool:
        """Whether an update may be trained together with the measurement before its round."""
        return self._exchange is None

    def train_early(self, jobs: Sequence[Job], orders: Sequence[Order]) -> list[Answer]:
        """Send orders that measure and may already train; return the answers, in order.

        Args:
            jobs: The jobs of the next commit that may start now.
            orders: Orders for different clients.
        """
        answers = self._nodes.ask(orders)
        by_client = {job.client: job for job in jobs}
        self._early = {
            by_client[order.client]: (digest_of(order), answer)
            for order, answer in zip(orders, answers, strict=True)
            if order.train is not None
        }
        return answers

    def _updates(self, jobs: Sequence[Job], commit: int) -> Iterator[ClientUpdate]:
        early, self._early = self._early, {}
        done: dict[int, Attempt[Trained]] = {}
        for wave in _waves(jobs):
            if self._exchange is None:
                self._train([(place, jobs[place]) for place in wave], commit, early, done)
            else:
                self._train_and_settle([(place, jobs[place]) for place in wave], commit, done)
            failed = any(done[place].result is None for place in wave)
            if failed and self._federation.on_client_failure != "skip":
                break
        for place in sorted(done):
            task, attempt = self._task(jobs[place]), done[place]
            self._events.client_starts(task, place)
            self._note(attempt)
            if attempt.result is not None:
                yield attempt.result.update
            self._events.client_ends(
                outputs_of(attempt), task, place, counts=attempt.result is not None
            )

    def combine(self, server: Server) -> None:
        """Add to the server what the updates did not have themselves."""
        assert self._exchange is not None, "without it, updates are whole"
        self._exchange.combine(server)

    def _train_and_settle(
        self, wave: Sequence[tuple[int, Job]], commit: int, done: dict[int, Attempt[Trained]]
    ) -> None:
        """Train jobs of different clients, whose nodes have something to settle with each other."""
        exchange, skip = self._exchange, self._federation.on_client_failure == "skip"
        assert exchange is not None, "asked for where there is one"
        places = {job.client: place for place, job in wave}

        def ask(phases: Mapping[int, Phase], needed: bool = True) -> dict[int, Mapping[str, bytes]]:
            orders = [Order(client, commit, {}, phase=phase) for client, phase in phases.items()]
            replies = {}
            for answer in self._nodes.ask(orders):
                raise_error(answer)
                if answer.failure is None:
                    replies[answer.client] = answer.reply
                elif needed:
                    failure = replace(answer.failure, round=commit)
                    lost: Attempt[Trained] = Attempt(answer.client, None, (failure,))
                    if not skip:
                        raise lost.give_up()
                    done[places[answer.client]] = lost
            return replies

        self._orders = {}
        self._phases = exchange.before(list(places), commit, ask)
        self._train([(place, job) for place, job in wave if place not in done], commit, {}, done)
        results = {c: done[place].result for c, place in places.items()}
        trained = {client: result for client, result in results.items() if result is not None}
        if len(trained) < len(places) and not skip:
            return
        settled = exchange.after(
            {client: result.update for client, result in trained.items()},
            self._orders,
            lambda phases: ask(phases, needed=False),
        )
        for client, update in settled.items():
            result = replace(trained[client], update=update)
            done[places[client]] = replace(done[places[client]], result=result)

    def _train(
        self,
        wave: Sequence[tuple[int, Job]],
        commit: int,
        early: dict[Job, tuple[str, Answer]],
        done: dict[int, Attempt[Trained]],
    ) -> None:
        """Train jobs of different clients, again while the policy says so."""
        failures: dict[int, list[ClientFailure]] = {place: [] for place, _ in wave}
        waiting = list(wave)
        for left in range(self._federation.retries, -1, -1):
            again = []
            for (place, job), answer in zip(waiting, self._ask(waiting, early), strict=True):
                raise_error(answer)
                if answer.trained is not None:
                    done[place] = Attempt(job.client, answer.trained, tuple(failures[place]))
                    if answer.keeps:
                        self.kept[job.client] = answer.trained.kept
                    continue
                assert answer.failure is not None, "an answer to a training order has one of both"
                failure = replace(answer.failure, round=commit, retried=left > 0)
                failures[place].append(failure)
                again.append((place, job))
            if not (waiting := again):
                return
        for place, job in waiting:
            done[place] = Attempt(job.client, None, tuple(failures[place]))

    def _ask(
        self, wave: Sequence[tuple[int, Job]], early: dict[Job, tuple[str, Answer]]
    ) -> list[Answer]:
        """Return the answers to a wave's orders; those that have come already are not sent again.

        What is trained is returned with the receipt in the place of what the client keeps.
        """
        orders = [self._order(job, receipt_in(self.kept.get(job.client))) for _, job in wave]
        if self._exchange is not None:
            orders = [replace(order, phase=self._phases[order.client]) for order in orders]
            self._orders |= {order.client: order for order in orders}
        known: dict[int, Answer] = {}
        for at, (_, job) in enumerate(wave):
            digest, answer = early.pop(job, ("", None))
            if answer is not None and digest == digest_of(orders[at]):
                known[at] = answer
        asked = [at for at in range(len(wave)) if at not in known]
        if asked:
            known |= zip(asked, self._nodes.ask([orders[at] for at in asked]), strict=True)
        return [self._with_receipt(orders[at], known[at]) for at in range(len(wave))]

    @staticmethod
    def _with_receipt(order: Order, answer: Answer) -> Answer:
        train, trained = order.train, answer.trained
        if train is None or trained is None:
            return answer
        kept = receipt_of(Receipt(train.run, train.job.stream)) if answer.keeps else {}
        return replace(answer, trained=replace(trained, kept=kept))


def _waves(jobs: Sequence[Job]) -> list[list[int]]:
    """Return the places of jobs in waves: a client's second job follows its first.

    Example:
        >>> _waves([Job(4, 0, 0), Job(7, 0, 1), Job(4, 1, 2)])
        [[0, 1], [2]]
    """
    waves: list[list[int]] = []
    counts: dict[int, int] = {}
    for place, job in enumerate(jobs):
        number = counts.get(job.client, 0)
        counts[job.client] = number + 1
        if number == len(waves):
            waves.append([])
        waves[number].append(place)
    return waves
