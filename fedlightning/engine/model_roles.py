"""Which of a module's keys are trained, shared and kept, and what a client's own model is."""

from __future__ import annotations

from collections.abc import Mapping

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from fedlightning.algorithms.algorithm import Algorithm
from fedlightning.core.parts import ModelKeys, Parts, Roles, norm_keys
from fedlightning.core.state import State, live_state
from fedlightning.errors import ConfigError
from fedlightning.models.base import freeze, names_its_head, resolve_parts

__all__ = ["ModelRoles", "set_memory_format"]


class ModelRoles:
    """What an algorithm does with the keys of one module.

    Made before training starts, while the module's parameters are as trainable as the user has
    made them.

    Args:
        module: The resident module.
        algorithm: What is trained, shared and kept.
        head: Key prefix or prefixes of the head (``federation.head``).

    Attributes:
        trainable: Whether the user lets each parameter move, by key.
    """

    def __init__(
        self,
        module: pl.LightningModule,
        algorithm: Algorithm,
        head: str | list[str] | None = None,
    ) -> None:
        self.module = module
        self.algorithm = algorithm
        self._head = head
        self._parts: Parts | None = None
        self._roles: Roles | None = None
        self.trainable = {key: p.requires_grad for key, p in module.named_parameters()}

    def check(self) -> None:
        """Find parts and roles; they are checked before anything is trained, needed or not.

        Raises:
            ConfigError: If body and head cannot be told apart, and have to be or are named.
        """
        if self.algorithm.needs_parts or self._head is not None or names_its_head(self.module):
            _ = self.parts
        _ = self.roles

    @property
    def roles(self) -> Roles:
        """Which of the module's keys are trained, shared and kept.

        Raises:
            ConfigError: If body and head cannot be told apart, and have to be.
        """
        if self._roles is None:
            self._roles = self._find_roles()
        return self._roles

    @property
    def parts(self) -> Parts:
        """Body and head of the module.

        Raises:
            ConfigError: If they cannot be told apart.
        """
        if self._parts is None:
            self._parts = resolve_parts(self.module, self._head)
        return self._parts

    @property
    def parameters(self) -> list[str]:
        """The shared keys that are parameters; the other shared keys are buffers."""
        shared = set(self.roles.shared)
        return [key for key, _ in self.module.named_parameters() if key in shared]

    @property
    def moving(self) -> list[str]:
        """The shared parameters that clients move."""
        trained = set(self.roles.trained)
        return [key for key in self.parameters if key in trained and self.trainable[key]]

    def freeze(self) -> None:
        """Freeze what the algorithm does not train."""
        if self.algorithm.train != "full":
            freeze(self.module, self.parts, "head" if self.algorithm.train == "body" else "body")

    def thaw(self) -> None:
        """Make every parameter as trainable as the user has made it."""
        for key, parameter in self.module.named_parameters():
            parameter.requires_grad_(self.trainable.get(key, parameter.requires_grad))

    def personal_model(self, kept: Mapping[str, Tensor]) -> State:
        """Return the values in which a client's own model differs from the global one.

        The module must hold the global model.

        Args:
            kept: What the client has kept; empty if it never trained.
        """
        if not kept:
            return {}
        own = self.roles.kept_of(kept)
        model = {**live_state(self.module), **own}
        for hook in self.algorithm.hooks:
            own |= hook.personal(kept, model)
        return own

    def _find_roles(self) -> Roles:
        algorithm, module = self.algorithm, self.module
        norms = norm_keys(module) if algorithm.own_norms else ()
        if algorithm.own_norms and not norms:
            raise ConfigError(
                f"{algorithm.name} leaves BatchNorm layers to the clients, and "
                f"{type(module).__name__} has none."
            )
        known = algorithm.needs_parts or self._parts is not None
        parts = self.parts if known else Parts(body=tuple(live_state(module)), head=())
        return algorithm.roles(ModelKeys(parts, norms))


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
