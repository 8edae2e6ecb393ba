"""The server: what it merges, what it remembers, what it sends along."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from torch import Tensor

from fedlightning.algorithms import Algorithm, ClientUpdate
from fedlightning.algorithms.aggregation import Aggregator, WeightedMean
from fedlightning.core.state import State, first_non_finite
from fedlightning.errors import FederationError

__all__ = ["Server"]

_OPTIMIZER = "optimizer/"


class Server:
    """Merges a round's updates, with the server's optimizer and the local methods' server sides.

    What it remembers changes with :meth:`commit` alone, so that a round that fails leaves no trace.

    Args:
        algorithm: How updates are merged.
        among: The number of clients that take part in training.
        aggregator: What merges updates, if not the algorithm's mean.
    """

    def __init__(
        self, algorithm: Algorithm, among: int, aggregator: Aggregator | None = None
    ) -> None:
        self._algorithm = algorithm
        self._aggregator = aggregator
        self._among = among
        self._state: State = {}
        self._next: State = {}
        self._loaded: State = {}
        self._parameters: tuple[str, ...] = ()

    def start(
        self, model: Mapping[str, Tensor], shared: Iterable[str], trained: Iterable[str]
    ) -> None:
        """Make ready for the first round, or go on from a state that was loaded.

        Args:
            model: The global model.
            shared: Its parameters (not buffers) that clients share.
            trained: Those of them that move.
        """
        self._parameters = tuple(shared)
        state: State = {}
        if self._algorithm.server is not None:
            start = self._algorithm.server.start({key: model[key] for key in self._parameters})
            state |= {_OPTIMIZER + name: value for name, value in start.items()}
        moving = {key: model[key] for key in trained}
        for method in self._algorithm.local:
            state |= method.server_state(moving)
        device = next((value.device for value in model.values()), None)
        loaded = self._loaded
        self._state = {
            name: loaded[name].to(device) if name in loaded else value
            for name, value in state.items()
        }

    @property
    def sent_along(self) -> State:
        """What clients get beside the model: the state of the local methods' server sides."""
        return {k: v for k, v in self._state.items() if not k.startswith(_OPTIMIZER)}

    def merge(
        self,
        updates: Iterable[ClientUpdate],
        model: Mapping[str, Tensor],
        shared: Iterable[str],
    ) -> State:
        """Return the next values of the shared part; :meth:`commit` makes them count.

        Args:
            updates: One a client, in cohort order, each valid until the next is asked for.
            model: The global model.
            shared: Its keys that clients share; parameters that are not among them did not change.
        """
        extras, count = WeightedMean(self._algorithm.sums), [0]
        reference = {key: model[key] for key in shared}
        noted = self._noting(updates, reference, extras, count)
        if self._aggregator is None:
            merged = self._algorithm.aggregate(noted)
        else:
            merge = self._aggregator.start(reference, self._parameters, self._algorithm.sums)
            merged = self._algorithm.aggregate(noted, merge)
        self._next = dict(self._state)
        sent = extras.result() if count[0] else {}
        for method in self._algorithm.local:
            self._next |= method.merge(self.sent_along, sent, count[0], self._among)
        still = {key: model[key] for key in self._parameters if key not in reference}
        moved = self._step({**merged, **still}, model, count[0])
        if (bad := first_non_finite(moved)) is not None:
            raise FederationError(
                f"{bad} of the global model is non-finite after the step of "
                f"{self._algorithm.server!r}; lower its learning rate."
            )
        return {**merged, **moved}

    def commit(self) -> None:
        """Have what the last merge remembered count."""
        self._state = self._next

    def state_dict(self) -> State:
        """Return what is remembered."""
        return dict(self._state)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take back what :meth:`state_dict` gave."""
        self._loaded = dict(state)

    @staticmethod
    def _noting(
        updates: Iterable[ClientUpdate],
        received: Mapping[str, Tensor],
        extras: WeightedMean,
        count: list[int],
    ) -> Iterator[ClientUpdate]:
        for update in updates:
            extras.push(update.extras, 1.0)
            count[0] += 1
            yield replace(update, received=received)

    def _step(self, merged: State, model: Mapping[str, Tensor], clients: int) -> State:
        """Return the parameters after the server optimizer's step."""
        optimizer = self._algorithm.server
        keys = [key for key in self._parameters if key in merged]
        if optimizer is None or not keys:
            return {}
        before = {
            k.removeprefix(_OPTIMIZER): v
            for k, v in self._state.items()
            if k.startswith(_OPTIMIZER)
        }
        moved, after = optimizer.move(
            {key: model[key] for key in keys}, merged, before, clients, self._among
        )
        self._next |= {_OPTIMIZER + name: value for name, value in after.items()}
        return moved
