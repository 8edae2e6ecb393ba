"""What a loop knows of its model: whose keys are whose, and what a client's own model is."""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import replace
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_only
from torch import nn

from fedlightning.core.parts import KeyRoles, Parts, names_in, needs_names
from fedlightning.core.state import State, live_state
from fedlightning.engine._lightning.round_loop import RoundLoop
from fedlightning.engine.frozen import FrozenParameters
from fedlightning.errors import ConfigError
from fedlightning.federation.settings import Federation
from fedlightning.models.base import freeze_all_but, named_parts, resolve_parts, undivided
from fedlightning.storage.client_store import ClientStore

__all__ = ["LoopWithModel"]

_log = logging.getLogger(f"pytorch_lightning.{__name__}")  # is shown where Lightning's own is


class LoopWithModel(RoundLoop):
    """A loop that trains one resident module.

    Args:
        trainer: The trainer that runs it.
        federation: How clients learn together.
        personal: What clients keep.
        **limits: The least and the largest number of rounds.
    """

    def __init__(
        self, trainer: pl.Trainer, federation: Federation, personal: ClientStore, **limits: Any
    ) -> None:
        super().__init__(trainer, **limits)
        self.federation = federation
        self.personal = personal
        self._roles: KeyRoles | None = None
        self._parts: Parts | None = None
        self._undivided: Parts | None = None
        self.frozen = FrozenParameters(nn.Module(), ())

    @property
    def module(self) -> pl.LightningModule:
        """The resident module: the global model between clients, a client's during its turn."""
        return self.trainer.lightning_module

    @property
    def parts(self) -> Parts:
        """The module's parts.

        Raises:
            ConfigError: If one that is named does not exist.
        """
        if self._parts is None:
            self._parts = resolve_parts(self.module, self.federation.head)
        return self._parts

    def parts_for(self, expression: str) -> Parts:
        """Return the module's parts, as far as an expression needs them to be told apart."""
        if self._parts is not None or needs_names(expression) or named_parts(self.module):
            return self.parts
        if self._undivided is None:
            self._undivided = undivided(self.module)
        return self._undivided

    @property
    def roles(self) -> KeyRoles:
        """Which of the module's keys are trained, shared and kept.

        Raises:
            ConfigError: If the module does not have a part that the algorithm names.
        """
        if self._roles is None:
            self._roles = self._find_roles()
        return self._roles

    def leave_out_frozen(self) -> None:
        """Leave out of what is shared the parameters that the user has frozen, and say so."""
        self.frozen = FrozenParameters(self.module, self.roles.shared)
        if not self.frozen.keys:
            return
        total = sum(parameter.numel() for parameter in self.module.parameters())
        _say(f"{self.frozen.size:,} of {total:,} parameters are frozen and not sent.")
        self._roles = replace(self.roles, shared=self.frozen.shared)

    def share_unfrozen(self) -> None:
        """Share, from this round on, what a callback has unfrozen."""
        if self.frozen.refresh():
            self._roles = replace(self.roles, shared=self.frozen.shared)

    def share_changed(self, keys: Collection[str]) -> None:
        """Share, from now on, what a client has changed although it is frozen."""
        self.frozen.send(keys)
        self._roles = replace(self.roles, shared=self.frozen.shared)
        _say(f"{', '.join(sorted(keys))}: sent although frozen, because a client has changed it.")

    @property
    def parameters(self) -> frozenset[str]:
        """The keys of the module's parameters; the other keys are buffers'."""
        return frozenset(key for key, _ in self.module.named_parameters())

    def kept_part(self, client: int) -> State:
        """Return the parts of the model that a client has kept."""
        return self.roles.kept_of(self.personal.get(client) or {})

    def personal_model(self, client: int) -> State:
        """Return the values in which a client's own model differs from the global one.

        The module must hold the global model.
        """
        kept = self.personal.get(client)
        if not kept:
            return {}
        own = self.roles.kept_of(kept)
        model = {**live_state(self.module), **own}
        for method in self.federation.algorithm.local:
            own |= method.personal(kept, model)
        return own

    def freeze(self) -> None:
        """Freeze what the algorithm does not train."""
        train = self.federation.algorithm.train
        if train != "full":
            freeze_all_but(self.module, self.parts_for(train), self.roles.trained)

    def set_memory_format(self) -> None:
        """Lay the weights out as they are trained: a convolution's output takes its layout."""
        if self._wants_channels_last():
            self.module.to(memory_format=torch.channels_last)

    def _wants_channels_last(self) -> bool:
        if self.federation.channels_last is not None:
            return self.federation.channels_last
        on_cpu = self.trainer.strategy.root_device.type == "cpu"
        gains = on_cpu or "16" in str(self.trainer.precision)
        return gains and any(isinstance(child, nn.Conv2d) for child in self.module.modules())

    def _find_roles(self) -> KeyRoles:
        algorithm = self.federation.algorithm
        parts = self.parts if algorithm.needs_parts else self.parts_for(algorithm.share)
        if not parts.norm and "norm" in names_in(algorithm.share):
            raise ConfigError(
                f"{algorithm.name} leaves BatchNorm layers to the clients, and {parts.owner} has "
                f"none (algorithm.share={algorithm.share!r})."
            )
        if algorithm.needs_head:
            _ = parts.head
        return algorithm.roles(parts)


@rank_zero_only
def _say(text: str) -> None:
    _log.info(text)
