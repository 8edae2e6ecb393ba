"""`ClientContext`: one client's turn, as local methods see it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fedlightning.core.batches import Batch
from fedlightning.core.optimizers import optimizer_like
from fedlightning.core.parts import KeyRoles, Parts, head_module
from fedlightning.core.state import State, copy_into, first_non_finite, under
from fedlightning.errors import ConfigError

if TYPE_CHECKING:
    import pytorch_lightning as pl


__all__ = ["ClientContext"]


class GradientStep(Protocol):
    """A training step in two halves: the loss's gradient, and what is done with it."""

    def gradient(self, batch: Batch, batch_idx: int) -> Tensor | None:
        """Add the gradient of the module's loss to what is there; return the loss."""

    def update(self, batch_idx: int) -> None:
        """Take the optimizer's step, and forget the gradients."""

    def clip(self, optimizer: Optimizer) -> None:
        """Clip the gradients of an optimizer's parameters, if the trainer says so."""


@dataclass
class ClientContext:
    """What a client's turn offers to the local methods of an algorithm.

    The module is in the middle of it: between :meth:`LocalMethod.begin` and
    :meth:`LocalMethod.end` it holds what the client trains. Whatever a method writes down here
    belongs to this turn alone, and is lost if the turn fails.

    Attributes:
        client: Client id.
        round: Round index, from 0.
        local_epochs: ``federation.local_epochs``.
        module: The resident module.
        received: The global model as the client received it; not to be changed.
        scratch: For the methods' own use until the turn ends.
        kept_after: What the client keeps beside the parts of the model, by name.
        sent: What the client sends beside the shared part, by name.
    """

    client: int
    round: int
    local_epochs: int
    module: pl.LightningModule
    received: Mapping[str, Tensor]
    roles: KeyRoles
    parts: Callable[[], Parts]
    before: Mapping[str, Tensor]
    servers: Mapping[str, Tensor]
    live: Mapping[str, Tensor]
    optimizer: Optimizer
    step: GradientStep | None
    muted: Callable[[], AbstractContextManager[None]]
    apart: Callable[[ClientContext, Mapping[str, Tensor], Callable[[], None], int], State]
    counts: Callable[[int, int], Tensor]
    scratch: dict[str, Any] = field(default_factory=dict)
    kept_after: State = field(default_factory=dict)
    sent: State = field(default_factory=dict)

    # -- the model -----------------------------------------------------------------------------

    @cached_property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The parameters that the client trains, by key."""
        return {k: p for k, p in self.module.named_parameters() if p.requires_grad}

    @cached_property
    def shared(self) -> frozenset[str]:
        """The keys that the client sends; what it trains besides is in no global model."""
        return frozenset(self.roles.shared)

    @property
    def lr(self) -> float:
        """The optimizer's present learning rate (that of its first group)."""
        return float(self.optimizer.param_groups[0]["lr"])

    def weights(self) -> State:
        """Return copies of the trained parameters."""
        return {key: p.detach().clone() for key, p in self.parameters.items()}

    def set_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Copy values into trained parameters."""
        copy_into({key: self.parameters[key] for key in weights}, weights)

    @torch.no_grad()
    def shift(self, directions: Mapping[str, Tensor], by: float) -> None:
        """Move trained parameters along directions, ``by`` times their length."""
        if directions:
            moved: list[Tensor] = [self.parameters[key] for key in directions]
            torch._foreach_add_(moved, list(directions.values()), alpha=by)

    def trained_state(self) -> State:
        """Return copies of all that the client trains, buffers included."""
        return {key: self.live[key].clone() for key in self.roles.trained}

    def train_only(self, part: str) -> None:
        """Let one part's parameters move from now on, of those that the client trains."""
        keys = set(self.parts().keys(part))
        for key, parameter in self.parameters.items():
            parameter.requires_grad_(key in keys)
            parameter.grad = None

    def head_keys(self) -> tuple[str, ...]:
        """Return the head's keys."""
        return self.parts().head

    def linear_head(self) -> nn.Linear:
        """Return the head.

        Raises:
            ConfigError: If it is no single linear layer.
        """
        head = head_module(self.module, self.parts())
        if isinstance(head, nn.Linear):
            return head
        raise ConfigError(
            f"the algorithm needs a head that is one nn.Linear; {type(self.module).__name__}'s is "
            "another one."
        )

    # -- training ------------------------------------------------------------------------------

    def gradient(self, batch: Batch, batch_idx: int) -> Tensor | None:
        """Run the user's training step and backward; gradients are in ``parameter.grad`` then.

        Returns:
            The loss, detached; ``None`` where the training step gives none.
        """
        assert self.step is not None
        for parameter in self.parameters.values():
            parameter.grad = None
        loss = self.step.gradient(batch, batch_idx)
        return loss.detach() if loss is not None else None

    def gradients(self) -> State:
        """Return the present gradients, which the next :meth:`gradient` does not touch."""
        return {key: p.grad for key, p in self.parameters.items() if p.grad is not None}

    def set_gradients(self, gradients: Mapping[str, Tensor]) -> None:
        """Put gradients in place; parameters that are left out get none."""
        for key, parameter in self.parameters.items():
            parameter.grad = gradients.get(key)

    def update(self, batch_idx: int) -> None:
        """Adjust and clip the gradients, take the optimizer's step, forget the gradients."""
        assert self.step is not None
        self.step.update(batch_idx)

    def move(self, optimizer: Optimizer) -> None:
        """Clip the gradients of an optimizer of :meth:`optimizer_like`, and take its step."""
        assert self.step is not None
        self.step.clip(optimizer)
        optimizer.step()

    @contextmanager
    def rewound(self) -> Iterator[None]:
        """Have torch's random numbers of the ``with`` block come again after it."""
        device = self.module.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield

    def quiet(self) -> AbstractContextManager[None]:
        """Leave out, inside the ``with`` block, what the module logs."""
        return self.muted()

    @contextmanager
    def at(self, weights: Mapping[str, Tensor], buffers: State) -> Iterator[None]:
        """Have other values in the module for the ``with`` block; ``buffers`` take up changes."""
        own_weights = self.weights()
        own_buffers = {key: self.live[key].clone() for key in buffers}
        self.set_weights(weights)
        copy_into(self.live, buffers)
        try:
            yield
        finally:
            copy_into(buffers, {key: self.live[key] for key in buffers})
            copy_into(self.live, own_buffers)
            self.set_weights(own_weights)

    @contextmanager
    def hooked(self, layer: nn.Module, hook: Callable[..., Any]) -> Iterator[None]:
        """Have a forward hook on a layer inside the ``with`` block."""
        handle = layer.register_forward_hook(hook)
        try:
            yield
        finally:
            handle.remove()

    def optimizer_like(self, tensors: Mapping[str, Tensor]) -> Optimizer:
        """Return an optimizer of the module's kind and settings for other tensors.

        Args:
            tensors: By the key of the parameter whose settings they shall have.
        """
        keys = {id(parameter): key for key, parameter in self.module.named_parameters()}
        return optimizer_like(self.optimizer, lambda p: tensors.get(keys.get(id(p), "")))

    def train_apart(
        self, start: Mapping[str, Tensor], adjust: Callable[[], None], epochs: int
    ) -> State:
        """Train another model of the client's on its data; the module is as before afterwards.

        Args:
            start: Where it starts, of the trained part; keys that are left out start from the
                global model.
            adjust: Changes gradients between backward and the optimizer's step.
            epochs: Local epochs.

        Returns:
            What was trained, as copies.
        """
        return self.apart(self, start, adjust, epochs)

    def class_counts(self, num_classes: int) -> Tensor:
        """Return how many of the client's training examples are of each class, as float64."""
        return self.counts(self.client, num_classes)

    # -- what lasts ----------------------------------------------------------------------------

    def kept(self, name: str) -> State:
        """Return what the client has kept under a name, on the module's device; empty at first."""
        return self._under(self.before, name)

    def kept_values(self, name: str) -> Tensor | None:
        """Return a single tensor that the client has kept."""
        return self.before.get(name)

    def keep(self, name: str, state: Mapping[str, Tensor]) -> None:
        """Keep tensors, by model key, for the client's next turn."""
        self.kept_after |= {f"{name}/{key}": value for key, value in state.items()}

    def keep_values(self, name: str, value: Tensor) -> None:
        """Keep a single tensor for the client's next turn."""
        self.kept_after[name] = value

    def server(self, name: str) -> State:
        """Return what the server has sent along under a name, by model key."""
        return self._under(self.servers, name)

    def send(self, name: str, state: Mapping[str, Tensor]) -> None:
        """Send tensors along, by model key; their plain mean reaches :meth:`LocalMethod.merge`."""
        self.sent |= {f"{name}/{key}": value for key, value in state.items()}

    def first_non_finite(self) -> str | None:
        """Return the first name under which a NaN or an infinity would be kept or sent."""
        return first_non_finite({**self.kept_after, **self.sent})

    def _under(self, values: Mapping[str, Tensor], name: str) -> State:
        device = self.module.device
        return {key: value.to(device) for key, value in under(values, name).items()}
