"""How many optimizer steps a run will have: known beforehand, since schedules are planned."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cached_property

import pytorch_lightning as pl

from fedlightning.engine.local_training import batch_limit
from fedlightning.errors import ConfigError
from fedlightning.federation.schedule import Population, Schedule
from fedlightning.federation.settings import Federation

__all__ = ["PlannedSteps"]


class PlannedSteps:
    """Counts the steps of the clients' optimizers from the first commit to the last.

    The whole plan is walked through once, when it is asked for: a few microseconds an update.

    Args:
        trainer: Its ``max_epochs``, ``max_steps`` and limits.
        federation: Local epochs or steps.
        schedule: Which client updates make a commit.
        population: The clients.
        num_batches: Returns a client's number of training batches.
    """

    def __init__(
        self,
        trainer: pl.Trainer,
        federation: Federation,
        schedule: Schedule,
        population: Population,
        num_batches: Callable[[int], int],
    ) -> None:
        self._trainer = trainer
        self._federation = federation
        self._schedule = schedule
        self._population = population
        self._num_batches = num_batches

    def of_update(self, client: int) -> int:
        """Return the steps of one update of a client."""
        federation, trainer = self._federation, self._trainer
        batches = batch_limit(trainer.limit_train_batches, self._num_batches(client))
        per_epoch = math.ceil(batches / trainer.accumulate_grad_batches)
        if federation.local_steps is not None:
            return federation.local_steps
        epochs = federation.local_epochs
        for hook in federation.client_algorithm.hooks:
            epochs = hook.num_epochs(epochs)
        return epochs * per_epoch

    def of_client(self, client: int) -> int:
        """Return the steps of all updates that a client is planned to make; at least of one."""
        return max(1, self._turns[client]) * self.of_update(client)

    @cached_property
    def of_run(self) -> int:
        """The steps of all updates of the run."""
        return sum(turns * self.of_update(client) for client, turns in self._turns.items())

    @cached_property
    def _turns(self) -> Counter[int]:
        return Counter(self._clients())

    def _clients(self) -> Iterator[int]:
        """Yield the client of every update that is planned."""
        commits = self._trainer.max_epochs
        if commits is None or commits < 0:
            raise ConfigError(
                "a schedule by step over the whole run needs the number of rounds: set "
                "trainer.max_epochs, or give the schedule its number of steps."
            )
        most = self._trainer.max_steps
        state, updates = self._schedule.start(self._population), 0
        for _ in range(commits):
            jobs, state = self._schedule.next(state, self._population)
            for job in jobs:
                if updates == most:
                    return
                yield job.client
                updates += 1
