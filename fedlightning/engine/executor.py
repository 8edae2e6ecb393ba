"""Training a cohort: every client's turn on the resident module, and what becomes of failures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pytorch_lightning.utilities import rank_zero_warn

from fedlightning.algorithms import ClientUpdate
from fedlightning.core.metrics import LogFlags, Metrics
from fedlightning.core.seeding import Key
from fedlightning.core.state import State
from fedlightning.datamodules import ClientTask
from fedlightning.engine._lightning.stock_step import forget_failed_step
from fedlightning.engine.frozen import FrozenChanged
from fedlightning.engine.grouped.training import GroupedTraining
from fedlightning.engine.local_log import LocalLog
from fedlightning.engine.local_training import LocalTraining, time_limit
from fedlightning.engine.method_training import MethodFit
from fedlightning.engine.resident import ResidentModule
from fedlightning.engine.workers.cohort_exchange import Trained, train_in_parallel
from fedlightning.engine.workers.collectives import longest_first
from fedlightning.federation.failures import (
    Attempt,
    ServersOwn,
    attempt,
    count_clients,
    require_enough,
)
from fedlightning.federation.update_checks import check_tensors, check_weight
from fedlightning.federation.uplink import num_bytes
from fedlightning.federation.uplink.pipeline import compressed

if TYPE_CHECKING:
    from fedlightning.engine.loop import FederatedLoop

__all__ = ["CohortTraining"]


class CohortTraining:
    """Trains the clients of a round on one worker or with several, and hands on their updates.

    Args:
        loop: The loop whose clients these are; its callbacks hear of each.
        resident: The module in which they train.
        fit: Makes a client's local epochs.
        log: Takes what the module logs in them.
    """

    def __init__(
        self,
        loop: FederatedLoop,
        resident: ResidentModule,
        fit: LocalTraining | GroupedTraining | MethodFit,
        log: LocalLog,
    ) -> None:
        self._loop = loop
        self._federation = loop.federation
        self._resident = resident
        self._fit = fit
        self._log = log
        self._bytes_shared = self._bytes_down = 0

    def run(
        self, cohort: tuple[int, ...], outcomes: list[Attempt[Trained]]
    ) -> Iterator[ClientUpdate]:
        """Return the cohort's updates, in its order, as fast as they are asked for.

        Args:
            cohort: Client ids.
            outcomes: Gets what became of each client.

        Raises:
            FederationError: (while they are read) A client failed and the policy is not to go on
                without it, or too few clients are left.
        """
        workers = self._loop.workers
        self._bytes_shared = num_bytes(self._shared())
        self._bytes_down = self._bytes_shared + num_bytes(self._loop.server.sent_along)
        if isinstance(self._fit, GroupedTraining):
            sizes = [self._size(client) for client in cohort]
            mine = longest_first(sizes, workers.size)[workers.rank]
            self._fit.plan([cohort[position] for position in mine])
        train = self._one_by_one if workers.size == 1 else self._in_parallel
        yield from train(cohort, outcomes)
        workers.announce(None, self._loop.round)
        least = min(self._federation.min_clients, len(cohort))
        require_enough(self._loop.round, cohort, outcomes, least)

    def metrics(self, outcomes: list[Attempt[Trained]]) -> Metrics:
        """Return what the round's clients logged, on average, and how many of them failed."""
        received = [outcome.result for outcome in outcomes if outcome.result is not None]
        fails = self._federation.on_client_failure == "fail"
        counts = {} if fails else count_clients(outcomes)
        traffic = {
            "communication/bytes_up": float(sum(t.update.bytes_up for t in received)),
            "communication/bytes_down": float(len(outcomes) * self._bytes_down),
        }
        return {
            **_mean_metrics(received),
            **{name: (value, LogFlags()) for name, value in {**counts, **traffic}.items()},
        }

    def _one_by_one(
        self, cohort: tuple[int, ...], outcomes: list[Attempt[Trained]]
    ) -> Iterator[ClientUpdate]:
        """Train one client after another, as fast as the aggregation asks for them."""
        resident = self._resident
        for position, client in enumerate(cohort):
            task = self._task(client)
            self._loop.client_starts(task, position)
            try:
                outcome = self._try(client)
                self._note(outcome, outcomes)
                if outcome.result is not None:
                    if outcome.result.changed:
                        raise FrozenChanged(outcome.result.changed)
                    yield outcome.result.update
            finally:
                resident.reset_client()
            self._loop.client_ends(
                _outputs(outcome), task, position, counts=outcome.result is not None
            )

    def _in_parallel(
        self, cohort: tuple[int, ...], outcomes: list[Attempt[Trained]]
    ) -> Iterator[ClientUpdate]:
        """Train with all workers; then events and updates come in cohort order on every one."""
        resident = self._resident

        def train(client: int) -> Attempt[Trained]:
            try:
                outcome = self._try(client)
                if outcome.result is None:
                    return outcome
                update = outcome.result.update
                state = {key: value.clone() for key, value in update.state.items()}
                return replace(
                    outcome, result=replace(outcome.result, update=replace(update, state=state))
                )
            finally:
                resident.reset_client()
                self._loop.fire("on_client_trained")

        trainings = train_in_parallel(
            self._loop.workers,
            cohort,
            [self._size(client) for client in cohort],
            train,
            self._shared(),
            self._loop.trainer.strategy.root_device,
            skip=self._federation.on_client_failure == "skip",
            told_to_stop=lambda: self._loop.trainer.received_sigterm,
        )
        self._loop.stop_if_told_to()
        for position, outcome in enumerate(trainings):
            task, trained = self._task(outcome.client), outcome.result
            self._loop.client_starts(task, position)
            light = trained and replace(trained, update=replace(trained.update, state={}))
            self._note(replace(outcome, result=light), outcomes)
            if trained is not None:
                yield trained.update
            self._loop.client_ends(_outputs(outcome), task, position, counts=trained is not None)

    def _try(self, client: int) -> Attempt[Trained]:
        """Give a client its turn, and another one while the federation's policy says so."""
        return attempt(
            client, self._loop.round, self._federation.retries, self._train, self._forget_turn
        )

    def _note(self, outcome: Attempt[Trained], outcomes: list[Attempt[Trained]]) -> None:
        """Tell of a client's failures; raise if the policy is not to go on without it."""
        outcomes.append(outcome)
        policy = self._federation.on_client_failure
        for failure in outcome.failures:
            if policy == "skip" or failure.retried:
                rank_zero_warn(f"{failure} ({'tried again' if failure.retried else 'skipped'})")
            self._loop.fire("on_client_failure", failure)
        if outcome.result is None and policy != "skip":
            raise outcome.give_up()

    def _forget_turn(self) -> None:
        """Undo a turn that came to no good end: nothing of it may reach the next one."""
        self._log.discard()
        self._resident.reset_client()
        forget_failed_step(self._loop.trainer)

    def _train(self, client: int) -> Trained:
        """Give a client its turn; its state is a view of the resident model."""
        loop, algorithm, resident = self._loop, self._federation.algorithm, self._resident
        kept = loop.personal.get(client) or {}
        resident.load_client(loop.roles.kept_of(kept))
        loop.freeze()
        turn = self._fit.start(client, kept) if isinstance(self._fit, MethodFit) else None
        key = Key(loop.seed, "fit", round=loop.round, client=client)
        loop.workers.announce(client, loop.round)
        result = self._fit.run(client, key, self._federation.local_epochs, self._after_step())
        check_tensors(resident.actual_state(), resident.view(), result.steps)
        resident.settle()
        changed = loop.frozen.changed(resident.view(), resident.received)
        shared, sent = self._shared(), turn.sent if turn is not None else {}
        update = ClientUpdate(
            client,
            shared,
            loop.data.num_examples(client),
            result.steps,
            result.metrics,
            sent,
            bytes_up=self._bytes_shared + num_bytes(sent),
            bytes_down=self._bytes_down,
        )
        check_weight(update.num_examples, algorithm.weight(update))
        if loop.listens("on_client_end"):
            try:
                loop.fire("on_client_end", update)
            except Exception as error:
                raise ServersOwn(error) from error
            check_tensors(update.state, self._shared(), result.steps)
        own = resident.copy(loop.roles.kept) | (turn.kept_after if turn is not None else {})
        if self._federation.compression is not None:
            update, left = compressed(
                self._federation.compression, update, resident.received, loop.parameters, kept
            )
            own |= left
        return Trained(update, own, dict(self._log.flags), changed)

    def _after_step(self) -> Callable[[int], None] | None:
        """Return what ends a client's training early: its time is over, or a worker is lost."""
        in_time, workers = time_limit(self._federation.client_timeout), self._loop.workers
        if workers.size == 1:
            return in_time

        def check(steps: int) -> None:
            workers.check()
            if in_time is not None:
                in_time(steps)

        return check

    def _task(self, client: int) -> ClientTask:
        return ClientTask(client, "train", self._size(client))

    def _size(self, client: int) -> int:
        """Return how many examples a client has; 0 if that fails, as its training then does."""
        try:
            return self._loop.data.num_examples(client)
        except Exception:
            return 0

    def _shared(self) -> State:
        return dict(self._resident.view(self._loop.roles.shared))


def _outputs(outcome: Attempt[Trained]) -> dict[str, Any]:
    """Return what ``on_train_batch_end`` gets; of a client that failed, its failure."""
    if outcome.result is not None:
        return outcome.result.update.outputs
    nothing = ClientUpdate(outcome.client, {}, 0).outputs
    return {**nothing, "failure": outcome.failures[-1]}


def _mean_metrics(received: list[Trained]) -> Metrics:
    """Average the clients' metrics over the cohort's examples."""
    metrics: dict[str, tuple[float, LogFlags]] = {}
    for name, flags in {n: f for trained in received for n, f in trained.flags.items()}.items():
        logged = [trained.update for trained in received if name in trained.update.metrics]
        weight = sum(update.num_examples for update in logged)
        if weight:
            total = sum(update.metrics[name] * update.num_examples for update in logged)
            metrics[name] = (total / weight, flags)
    return metrics
