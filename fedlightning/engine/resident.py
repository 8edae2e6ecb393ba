"""One module for all clients, and the global model beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

from torch import Tensor, nn

from fedlightning.core.optimizers import FreshOptimizers
from fedlightning.core.state import State, copy_into, live_state

__all__ = ["ResidentModule", "TensorBindings"]


class ResidentModule:
    """The module in which every client trains: copied into in place, never cloned per client.

    Between two clients it is the global model, so callbacks and checkpoints see that.

    Args:
        module: The module, holding the global model.
        fresh: Its optimizers.
    """

    def __init__(self, module: nn.Module, fresh: FreshOptimizers) -> None:
        self.fresh = fresh
        self._module = module
        self._modes: list[tuple[nn.Module, bool]] = []
        self._flags: list[tuple[nn.Parameter, bool]] = []
        self._anchors = TensorBindings(module)
        self._state = live_state(module)
        self._global = {key: value.clone() for key, value in self._state.items()}
        # non-persistent buffers are no part of a state: each client finds them as they are now
        self._transient = {k: b for k, b in module.named_buffers() if k not in self._state}
        self._transient_start = {key: value.clone() for key, value in self._transient.items()}
        self._at_work = False

    def begin_round(self) -> None:
        """Have every client start from the module as it is, callbacks' changes included."""
        copy_into(self._global, self._state)
        self.fresh.mark()
        self._modes = [(child, child.training) for child in self._module.modules()]
        self._flags = [(p, p.requires_grad) for p in self._module.parameters()]

    @property
    def received(self) -> State:
        """The global model as clients receive it; not to be changed."""
        return self._global

    def start(self, kept: Mapping[str, Tensor]) -> State:
        """Return the state from which a client with these kept values starts."""
        return {**self._global, **kept}

    def load_client(self, kept: Mapping[str, Tensor]) -> None:
        """A client starts: from the global model and what it has kept."""
        self._at_work = True
        copy_into(self._state, kept)

    def view(self, keys: Sequence[str] | None = None) -> State:
        """Return the present values of some keys, or of all; they change with the module."""
        return self._state if keys is None else {key: self._state[key] for key in keys}

    def actual_state(self) -> State:
        """Return the state as the module has it now, with other tensors, keys or shapes if need be.

        A client may have put tensors of its own in the places of the module's.
        """
        return live_state(self._module) if self._anchors.moved() else self._state

    def settle(self) -> None:
        """Have what a client has put in the module's places in the module's own tensors.

        Only for a state of the same keys and shapes.
        """
        if self._anchors.moved():
            present = live_state(self._module)
            self._anchors.restore()
            copy_into(self._state, present)

    def copy(self, keys: Sequence[str]) -> State:
        """Return a copy of the present values of some keys."""
        return {key: self._state[key].clone() for key in keys}

    def reset_client(self) -> None:
        """A client is done: the module is the global model again, its optimizers are fresh."""
        if not self._at_work:
            return
        if self._anchors.moved():
            self._anchors.restore()
        copy_into(self._state, self._global)
        copy_into(self._transient, self._transient_start)
        for child, mode in self._modes:
            child.training = mode
        for parameter, flag in self._flags:
            parameter.requires_grad_(flag)
        self.fresh.restore()
        self._at_work = False

    def commit(self, merged: Mapping[str, Tensor]) -> None:
        """Make merged values the global model's; keys that are left out keep theirs."""
        copy_into(self._global, merged)
        copy_into(self._state, merged)

    @contextmanager
    def showing_global(self) -> Iterator[None]:
        """Show the global model and fresh optimizers, even in the middle of a client's turn."""
        if not self._at_work:
            yield
            return
        with self._anchors.restored() if self._anchors.moved() else nullcontext():
            local = {key: value.clone() for key, value in self._state.items()}
            copy_into(self._state, self._global)
            try:
                with self.fresh.at_start():
                    yield
            finally:
                copy_into(self._state, local)


_TABLES = ("_parameters", "_buffers", "_modules")


class TensorBindings:
    """Remembers which parameters, buffers and children a module has, and puts them back.

    Optimizers and views of the state hold on to the tensors of the start; a client that assigns
    another one (``self.scale = nn.Parameter(...)``, ``self.mean = 0.9 * self.mean``) would go its
    own way unnoticed, and leave it to the next client.

    Args:
        module: The module.

    Example:
        >>> net = nn.Linear(2, 1)
        >>> anchors, weight = TensorBindings(net), net.weight
        >>> net.weight = nn.Parameter(net.weight.detach() + 1)
        >>> anchors.moved()
        True
        >>> anchors.restore()
        >>> net.weight is weight
        True
    """

    def __init__(self, module: nn.Module) -> None:
        self._tables = _tables_of(module)

    def moved(self) -> bool:
        """Whether anything that makes up the state is not where it was."""
        return any(
            any(now.get(name) is not entry for name, entry in then.items())
            or (len(now) != len(then) and bool(_new_state(owner, now, then)))
            for owner, now, then in self._tables
        )

    def restore(self) -> None:
        """Put everything back; caches that are no state (non-persistent buffers) may stay."""
        for owner, now, then in self._tables:
            new = {*then, *_new_state(owner, now, then)}
            caches = {name: entry for name, entry in now.items() if name not in new}
            now.clear()
            now.update(then | caches)  # in the order of the start

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Put everything back inside the ``with`` block alone."""
        present = [(now, dict(now)) for _, now, _ in self._tables]
        self.restore()
        try:
            yield
        finally:
            for now, entries in present:
                now.clear()
                now.update(entries)


def _tables_of(module: nn.Module) -> list[tuple[nn.Module, dict[str, Any], dict[str, Any]]]:
    return [
        (child, table, dict(table))
        for child in module.modules()
        for table in (getattr(child, name) for name in _TABLES)
    ]


def _new_state(owner: nn.Module, now: dict[str, Any], then: dict[str, Any]) -> list[str]:
    """Return new entries that a state dict would show."""
    transient = owner._non_persistent_buffers_set
    return [
        name
        for name, entry in now.items()
        if name not in then
        and (
            (isinstance(entry, Tensor) and name not in transient)
            or (isinstance(entry, nn.Module) and bool(entry.state_dict()))
        )
    ]
