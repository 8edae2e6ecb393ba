"""`UplinkStage`: one thing that happens to an update between a client and the server."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from fedlightning.algorithms.context import ClientContext
from fedlightning.core.messages import ClientUpdate, Up
from fedlightning.core.seeding import Key
from fedlightning.core.state import State
from fedlightning.core.validation import Setting

__all__ = ["UplinkContext", "UplinkStage"]


@dataclass
class UplinkContext:
    """What a stage's client half knows beside the update.

    Attributes:
        received: The global model as the client received it; not to be changed.
        parameters: The keys of the module's parameters; the other keys are buffers'.
        extras: The declarations of the extras.
        kept: What the client has kept, by name.
        kept_after: What it keeps for its next update.
        key: The stage's random stream.
        sent_along: What the server has sent beside the model, by name.
    """

    received: Mapping[str, Tensor]
    parameters: Collection[str]
    extras: Sequence[Up]
    kept: Mapping[str, Tensor]
    key: Key
    kept_after: State = field(default_factory=dict)
    sent_along: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, context: ClientContext, extras: Sequence[Up]) -> UplinkContext:
        """Return the context of a client update's stages."""
        parameters = frozenset(key for key, _ in context.module.named_parameters())
        key = Key(context.key.seed, "uplink", context.key.round, context.key.client)
        kept, along = context.before, context.extras
        return cls(context.received, parameters, extras, kept, key, sent_along=along)


class UplinkStage(Setting, ABC):
    """A stage of ``federation.uplink``: a client half, and a server half that undoes its form.

    Stages are applied in their order at the client and in reverse order at the server. A stage sees
    the whole message, extras included; it refuses by name what it cannot treat.
    """

    @property
    def name(self) -> str:
        """The name to show."""
        return type(self).__name__

    @abstractmethod
    def send(self, update: ClientUpdate, context: UplinkContext) -> ClientUpdate:
        """Return the update as it leaves the client.

        Args:
            update: The update; its tensors are not changed in place.
            context: What else the client knows.
        """

    def receive(
        self, update: ClientUpdate, received: Mapping[str, Tensor], parameters: Collection[str]
    ) -> ClientUpdate:
        """Return the update as the server reads it.

        Args:
            update: The update as it arrives.
            received: The global model that the client had received.
            parameters: The keys of the model's parameters; the other keys are buffers'.
        """
        return update
