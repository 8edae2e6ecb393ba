"""One module for all clients, and the global model beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from fedlightning.optimizers import FreshOptimizers
from fedlightning.parts import State, copy_into, live_state

__all__ = ["Resident"]


class Resident:
    """The module in which every client trains: copied into in place, never cloned per client.

    Between two clients it is the global model, so callbacks and checkpoints see that.

    Args:
        module: The module, holding the global model.
        fresh: Its optimizers.
    """

    def __init__(self, module: nn.Module, fresh: FreshOptimizers) -> None:
        self.fresh = fresh
        self._state = live_state(module)
        self._global = {key: value.clone() for key, value in self._state.items()}
        self._at_work = False

    def take_turn(self, kept: Mapping[str, Tensor]) -> None:
        """A client starts: from the global model and what it has kept."""
        self._at_work = True
        copy_into(self._state, kept)

    def view(self, keys: Sequence[str] | None = None) -> State:
        """Return the present values of some keys, or of all; they change with the module."""
        return self._state if keys is None else {key: self._state[key] for key in keys}

    def copy(self, keys: Sequence[str]) -> State:
        """Return a copy of the present values of some keys."""
        return {key: self._state[key].clone() for key in keys}

    def end_turn(self) -> None:
        """A client is done: the module is the global model again, its optimizers are fresh."""
        copy_into(self._state, self._global)
        self.fresh.restore()
        self._at_work = False

    def commit(self, merged: Mapping[str, Tensor]) -> None:
        """Make merged values the global model's; keys that are left out keep theirs."""
        copy_into(self._global, merged)
        copy_into(self._state, merged)

    @contextmanager
    def at_rest(self) -> Iterator[None]:
        """Show the global model and fresh optimizers, even in the middle of a client's turn."""
        if not self._at_work:
            yield
            return
        local = {key: value.clone() for key, value in self._state.items()}
        copy_into(self._state, self._global)
        try:
            with self.fresh.at_start():
                yield
        finally:
            copy_into(self._state, local)
