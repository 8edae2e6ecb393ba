"""One module for all clients, and the global model beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext

import pytorch_lightning as pl
from torch import Tensor, nn

from fedlightning.core.module_snapshot import ModuleSnapshot, TensorBindings
from fedlightning.core.optimizers import FreshOptimizers
from fedlightning.core.state import State, copy_into, live_state

__all__ = ["LIGHTNING_ATTRIBUTES", "ResidentModule"]

LIGHTNING_ATTRIBUTES = frozenset(vars(pl.LightningModule()))
"""Names of attributes that are Lightning's and not the user's module's own."""


class ResidentModule:
    """The module in which every client trains: copied into in place, never cloned per client.

    Between two clients it is the global model, so callbacks and checkpoints see that. What a
    client leaves in the module beside its state (attributes, metric objects, modes, gradient
    flags, non-persistent buffers) is put back with it.

    Args:
        module: The module, holding the global model.
        fresh: Its optimizers.
        alone: Whether a single client trains in the whole run. Its module's attributes and
            non-persistent buffers then last from one of its updates to the next, as in a run of
            plain Lightning.
    """

    def __init__(self, module: nn.Module, fresh: FreshOptimizers, alone: bool = False) -> None:
        self.fresh = fresh
        self._module = module
        self._alone = alone
        self._bindings = TensorBindings(module)
        self._state = live_state(module)
        self._global = {key: value.clone() for key, value in self._state.items()}
        # non-persistent buffers are no part of a state: each client finds them as they are now
        self._transient = {k: b for k, b in module.named_buffers() if k not in self._state}
        self._transient_start = {key: value.clone() for key, value in self._transient.items()}
        self._snapshot: ModuleSnapshot | None = None
        self._at_work = False
        self.begin_round()

    def begin_round(self) -> None:
        """Let every client start from the module as it is, callbacks' changes included."""
        copy_into(self._global, self._state)
        self.fresh.mark()
        self._modes = [(child, child.training) for child in self._module.modules()]
        self._flags = [(p, p.requires_grad) for p in self._module.parameters()]

    @property
    def received(self) -> State:
        """The global model as clients receive it; it changes with :meth:`commit` alone."""
        return self._global

    def load_client(
        self, kept: Mapping[str, Tensor], received: Mapping[str, Tensor] | None = None
    ) -> None:
        """Load what a client starts from.

        Args:
            kept: The parts of the model that it has kept.
            received: The global model that it received; ``None`` means the newest.
        """
        self._at_work = True
        if not self._alone and (self._snapshot is None or not self._snapshot.unchanged()):
            self._snapshot = ModuleSnapshot(self._module, LIGHTNING_ATTRIBUTES)
        if received is not None and received is not self._global:
            copy_into(self._state, received)
        copy_into(self._state, kept)

    def view(self) -> State:
        """Return the module's own tensors by key; they change with the module."""
        return self._state

    def actual_state(self) -> State:
        """Return the actual state dict, whose tensors, keys or shapes may be other ones by now."""
        return live_state(self._module) if self._bindings.changed() else self._state

    def rebind(self) -> None:
        """Copy the values that the module has now into its own tensors, and put those back.

        Only for a state of the same keys and shapes.
        """
        if self._bindings.changed():
            present = live_state(self._module)
            self._bindings.restore()
            copy_into(self._state, present)

    def clone(self, keys: Sequence[str]) -> State:
        """Return a copy of the present values of some keys."""
        return {key: self._state[key].clone() for key in keys}

    def reset_client(self) -> None:
        """Make the module the global model again, with fresh optimizers and its own attributes."""
        if not self._at_work:
            return
        if self._bindings.changed():
            self._bindings.restore()
        if self._snapshot is not None:
            self._snapshot.restore()
        copy_into(self._state, self._global)
        if self._alone:  # otherwise modes are among the attributes
            for child, mode in self._modes:
                child.training = mode
        else:
            copy_into(self._transient, self._transient_start)
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
        """Show the global model and fresh optimizers, even in the middle of a client update."""
        if not self._at_work:
            yield
            return
        with self._bindings.rebound() if self._bindings.changed() else nullcontext():
            local = {key: value.clone() for key, value in self._state.items()}
            copy_into(self._state, self._global)
            try:
                with self.fresh.at_start():
                    yield
            finally:
                copy_into(self._state, local)
