"""Which of a module's keys are trained, shared and kept, and what a client's own model is."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import replace

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor, nn

from fedlightning.algorithms.algorithm import Algorithm
from fedlightning.core.network_per_client import NetworkPerClient
from fedlightning.core.parts import Buffers, KeyRoles, Parts, names_in, needs_names
from fedlightning.core.state import State, live_state
from fedlightning.engine.frozen import FrozenParameters
from fedlightning.errors import ConfigError
from fedlightning.models.base import (
    freeze_all_but,
    named_parts,
    names_its_head,
    resolve_parts,
    undivided,
)

__all__ = ["ModelRoles", "set_memory_format"]

_log = logging.getLogger(f"pytorch_lightning.{__name__}")  # is shown where Lightning's own is


class ModelRoles:
    """What an algorithm does with the keys of one module.

    Made before training starts, while the module's parameters are as trainable as the user has
    made them.

    Args:
        module: The resident module.
        algorithm: What is trained, shared and kept.
        head: Key prefix or prefixes of the head (``federation.head``).
        buffers: What becomes of buffers (``federation.buffers``).

    Attributes:
        trainable: Whether the user lets each parameter move, by key.
        frozen: The shared parameters that are not sent, because no client changes them.
    """

    def __init__(
        self,
        module: pl.LightningModule,
        algorithm: Algorithm,
        head: str | list[str] | None = None,
        buffers: Buffers = "average",
    ) -> None:
        self.module = module
        self.algorithm = algorithm
        self._buffers = buffers
        self._head = head
        self._parts: Parts | None = None
        self._roles: KeyRoles | None = None
        self._undivided: Parts | None = None
        # asked once: a protocol's isinstance() costs as much as a local step of a small network
        self._networks = module if isinstance(module, NetworkPerClient) else None
        self.frozen = FrozenParameters(nn.Module(), ())
        self.trainable = {key: p.requires_grad for key, p in module.named_parameters()}

    def check(self) -> None:
        """Find parts and roles; they are checked before anything is trained, needed or not.

        Raises:
            ConfigError: If a part that is named, or that the algorithm names, does not exist.
        """
        if self.algorithm.needs_parts or self._head is not None or names_its_head(self.module):
            _ = self.parts
        _ = self.roles

    def parts_for(self, expression: str) -> Parts:
        """Return the module's parts, as far as an expression needs them to be told apart."""
        if self._parts is not None or needs_names(expression) or named_parts(self.module):
            return self.parts
        if self._undivided is None:
            self._undivided = undivided(self.module)
        return self._undivided

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
    def roles(self) -> KeyRoles:
        """Which of the module's keys are trained, shared and kept.

        Raises:
            ConfigError: If the module does not have a part that the algorithm names.
        """
        if self._roles is None:
            self._roles = self._find_roles()
        return self._roles

    @property
    def parts(self) -> Parts:
        """The module's parts.

        Raises:
            ConfigError: If one that is named does not exist.
        """
        if self._parts is None:
            self._parts = resolve_parts(self.module, self._head)
        return self._parts

    @property
    def parameters(self) -> list[str]:
        """The shared keys that are parameters, those that are not sent included."""
        shared = {*self.roles.shared, *self.frozen.keys}  # a callback may unfreeze some of them
        return [key for key, _ in self.module.named_parameters() if key in shared]

    @property
    def moving(self) -> list[str]:
        """The shared parameters that clients move."""
        trained = set(self.roles.trained)
        return [key for key in self.parameters if key in trained and self.trainable[key]]

    def freeze(self) -> None:
        """Freeze what the algorithm does not train."""
        train = self.algorithm.train
        if train != "full":
            freeze_all_but(self.module, self.parts_for(train), self.roles.trained)

    def thaw(self) -> None:
        """Make every parameter as trainable as the user has made it."""
        for key, parameter in self.module.named_parameters():
            parameter.requires_grad_(self.trainable.get(key, parameter.requires_grad))

    @property
    def differ_by_client(self) -> bool:
        """Whether clients have networks of their own, each with other keys."""
        return self._networks is not None

    def roles_of(self, client: int) -> KeyRoles:
        """Return which of a client's keys are trained, shared and kept.

        Raises:
            ConfigError: If something is shared that the client's network lacks.
        """
        if self._networks is None:
            return self.roles
        own = self.roles.within(self._networks.client_keys(client))
        if len(own.shared) < len(self.roles.shared):
            lacking = next(key for key in self.roles.shared if key not in own.shared)
            raise ConfigError(
                f"{self.algorithm.name} averages {lacking}, which the network of client {client} "
                f"does not have: {type(self.module).__name__} has other networks for other "
                "clients. Take an algorithm that shares nothing (LocalOnly, FedMD, PFedHR)."
            )
        return own

    def freeze_all_but(self, roles: KeyRoles) -> None:
        """Freeze what a client does not train, where clients train other networks."""
        if self.differ_by_client:
            trained = frozenset(roles.trained)
            for key, parameter in self.module.named_parameters():
                if key not in trained:
                    parameter.requires_grad_(False)

    def start_of(self, client: int, kept: Mapping[str, Tensor]) -> State:
        """Return the values of the model that a client does not take from the global one."""
        if self._networks is None:
            return self.roles.kept_of(kept)
        return {**self.roles.kept_of(kept), **self._networks.client_start(client)}

    def personal_model(self, client: int, kept: Mapping[str, Tensor]) -> State:
        """Return the values in which a client's own model differs from the global one.

        The module must hold the global model.

        Args:
            client: Client id.
            kept: What the client has kept; empty if it never trained.
        """
        own = self.start_of(client, kept)
        if not kept:
            return own
        model = {**live_state(self.module), **own}
        for hook in self.algorithm.hooks:
            own |= hook.personal(kept, model)
        return own

    def _find_roles(self) -> KeyRoles:
        algorithm = self.algorithm
        parts = self.parts if algorithm.needs_parts else self.parts_for(algorithm.share)
        if not parts.norm and "norm" in names_in(algorithm.share):
            raise ConfigError(
                f"{algorithm.name} leaves BatchNorm layers to the clients, and {parts.owner} has "
                f"none (algorithm.share={algorithm.share!r})."
            )
        if algorithm.needs_head:
            _ = parts.head
        return self._with_policy(algorithm.roles(parts))

    def _with_policy(self, roles: KeyRoles) -> KeyRoles:
        """Return the roles under the policy for buffers."""
        if self._buffers == "average":
            return roles
        state = live_state(self.module)
        buffers = {key for key, _ in self.module.named_buffers() if key in state}
        setting = f"federation.buffers={self._buffers}"
        if self._buffers == "exclude":
            kept = next((key for key in roles.kept if key in buffers), None)
            if kept is not None:
                raise ConfigError(
                    f"{setting}: {self.algorithm.name} leaves {kept} to the clients; set it to "
                    "average or local."
                )
        own = roles.with_buffers(buffers, self._buffers)
        if own.kept != roles.kept and self.algorithm.stateless:
            raise ConfigError(
                f"{setting}: {self.algorithm.name} lets clients keep nothing; set it to average "
                "or exclude."
            )
        if not own.shared and roles.shared:
            raise ConfigError(f"{setting} leaves nothing of {type(self.module).__name__} to share.")
        return own

    def say_buffers(self) -> None:
        """Say what becomes of the module's floating-point buffers, if it has any."""
        roles, state = self.roles, live_state(self.module)
        keys = [
            key
            for key, _ in self.module.named_buffers()
            if key in state and state[key].is_floating_point()
        ]
        if not keys:
            return
        shared, kept = set(roles.shared), set(roles.kept)
        for group, words in (
            ([k for k in keys if k in shared], "are averaged, as parameters are"),
            ([k for k in keys if k in kept], "stay with each client"),
            ([k for k in keys if k not in shared | kept], "stay as they are initially"),
        ):
            if group:
                more = ", ..." if len(group) > 2 else ""
                _say(
                    f"buffers (federation.buffers={self._buffers}): {', '.join(group[:2])}{more} "
                    f"({len(group)} of {len(keys)}) {words}."
                )


@rank_zero_only
def _say(text: str) -> None:
    _log.info(text)


def set_memory_format(
    module: nn.Module, channels_last: bool | None, device: torch.device, half: bool
) -> None:
    """Lay 4-D weights out with channels last; a convolution's output takes their layout.

    Args:
        module: The module.
        channels_last: Whether to do so; ``None`` means where it makes convolutions faster.
        device: Where the module is.
        half: Whether training is in half precision.
    """
    if channels_last is None:
        gains = device.type == "cpu" or half
        channels_last = gains and any(isinstance(c, nn.Conv2d) for c in module.modules())
    if channels_last:
        module.to(memory_format=torch.channels_last)
