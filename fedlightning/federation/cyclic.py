"""`Cyclic`: the model goes from client to client."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedlightning.core.validation import is_integer
from fedlightning.errors import ConfigError
from fedlightning.federation.delays import Delays, delays_of
from fedlightning.federation.jobs import Job, Population, ScheduleState
from fedlightning.federation.schedule import Schedule

__all__ = ["Cyclic"]

_ORDERS = ("fixed", "shuffled")


class Cyclic(Schedule):
    """Cyclic weight transfer: one client after another trains the one model.

    A commit is one client's turn, so ``trainer.max_epochs`` counts turns: cycles times clients. The
    clients of a cycle are the federation's cohort, all of them with ``cohort_size: 1.0``. The state
    of the optimizers travels along with the model (``federation.optimizer_state``). Chang et al.,
    *Distributed deep learning networks among institutions for medical imaging*, JAMIA 2018.

    Args:
        order: ``"fixed"`` by ascending ids in every cycle, ``"shuffled"`` in an order drawn for
            each cycle, or the list of client ids of a cycle, which may name a client more than
            once.
        delays: Simulated seconds of an update, as in
            :class:`~fedlightning.federation.schedule.Synchronous`; ``None`` means without a
            clock. After a lost update the next client gets the model as it was.

    Example:
        >>> clients = Population(0, range(3), 3, lambda cycle: (2, 0, 1), num_examples=lambda c: 10)
        >>> schedule, state = Cyclic("shuffled"), ScheduleState()
        >>> order = []
        >>> for _ in range(4):
        ...     (job,), state = schedule.next(state, clients)
        ...     order.append((job.client, job.version))
        >>> order
        [(2, 0), (0, 1), (1, 2), (2, 3)]
    """

    size_given_by = "federation.schedule: Cyclic"
    sequential = True

    def __init__(
        self,
        order: str | list[int] = "fixed",
        delays: Delays | float | list[float] | None = None,
    ) -> None:
        named = isinstance(order, str) and order in _ORDERS
        listed = isinstance(order, (list, tuple)) and order and all(map(is_integer, order))
        if not named and not listed:
            raise ConfigError(
                f"federation.schedule.order must be {' or '.join(map(repr, _ORDERS))}, or a list "
                f"of client ids, got {order!r}."
            )
        self.order = order if isinstance(order, str) else [int(client) for client in order]
        self.delays = delays
        if delays is not None:
            delays_of(delays)

    @property
    def any_cohort(self) -> bool:
        """Whether cohorts may have any size: a cycle's length may vary."""
        return True

    def jobs_per_commit(self, population: Population) -> int:
        """Return 1."""
        return 1

    def next(
        self, state: ScheduleState, population: Population
    ) -> tuple[Sequence[Job], ScheduleState]:
        """Return the update of the client whose turn it is."""
        now, lost, extra = state.time, 0, state.extra
        delays = None if self.delays is None else delays_of(self.delays)
        while True:
            client, extra = self._turn_after(extra, population)
            start = time = now
            if delays is None:
                break
            turn = population.turn(client, extra["turns"])
            start = delays.start(turn, now)
            now = time = start + delays.seconds(turn)
            if not delays.is_lost(turn):
                break
            lost += 1
        job = Job(client, state.commit, 0, time, extra["turns"], start)
        return [job], ScheduleState(state.commit + 1, time, (), extra, {"lost": lost})

    def _turn_after(
        self, extra: Mapping[str, Any], population: Population
    ) -> tuple[int, Mapping[str, Any]]:
        """Return the next client and what is to be remembered then."""
        cycle, place = extra.get("cycle", -1), extra.get("place", 0)
        order = extra.get("order", ())
        while place == len(order):  # a cohort may be empty
            cycle, place = cycle + 1, 0
            order = self._order_of(cycle, population)
        turns = extra.get("turns", -1) + 1
        return order[place], {"cycle": cycle, "place": place + 1, "order": order, "turns": turns}

    def _order_of(self, cycle: int, population: Population) -> list[int]:
        """Return the clients of a cycle; the list is handed on from state to state."""
        if not isinstance(self.order, str):
            known = set(population.clients)
            for client in self.order:
                if client not in known:
                    raise ConfigError(
                        f"federation.schedule.order names client {client}, which does not train; "
                        f"there are {len(known)} clients, from {min(known)} to {max(known)}."
                    )
            return self.order
        if self.order == "fixed" and population.all_train:
            return list(population.clients)
        cohort = population.cohort(cycle)
        return sorted(cohort) if self.order == "fixed" else list(cohort)
