"""`ClientContext`: one client update, as the hooks of an algorithm see it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fedlightning.core.batches import PUBLIC, Batch, Split
from fedlightning.core.curvature import gradients_with_graph, hessian_product
from fedlightning.core.module_snapshot import eval_mode
from fedlightning.core.optimizers import FollowingOptimizer
from fedlightning.core.parts import KeyRoles, Parts, head_module
from fedlightning.core.seeding import Key
from fedlightning.core.state import State, copy_into, first_non_finite, under
from fedlightning.core.views import CENTRAL
from fedlightning.errors import ConfigError

if TYPE_CHECKING:
    import pytorch_lightning as pl

__all__ = ["ClientContext", "GradientStep", "Held", "Trains"]


class GradientStep(Protocol):
    """A training step in two halves: the loss's gradient, and what is done with it."""

    def loss(self, batch: Batch, batch_idx: int) -> Tensor | None:
        """Return the module's loss, through which gradients flow."""

    def gradient(self, batch: Batch, batch_idx: int) -> Tensor | None:
        """Add the gradient of the module's loss to what is there; return the loss."""

    def update(self, batch_idx: int) -> None:
        """Take the optimizer's step, and forget the gradients."""

    def clip(self, optimizer: Optimizer) -> None:
        """Clip the gradients of an optimizer's parameters, if the settings say so."""


class Trains(Protocol):
    """What trains a client's module, as far as hooks need it."""

    @property
    def optimizer(self) -> Optimizer:
        """The module's (first) optimizer."""

    @property
    def gradient_step(self) -> GradientStep | None:
        """The step that :meth:`ClientHook.local_step` is made of, where a hook overrides it."""

    def no_logging(self) -> AbstractContextManager[None]:
        """Drop what the module logs inside the ``with`` block."""

    def optimizer_memory(self) -> State:
        """Return what the module's optimizers and schedules by step remember, as copies."""

    def set_optimizer_memory(self, memory: Mapping[str, Tensor]) -> None:
        """Let the module's optimizers and schedules continue where others have ended."""

    def train_copy(
        self,
        context: ClientContext,
        start: Mapping[str, Tensor],
        adjust: Callable[[], None],
        epochs: int,
    ) -> State:
        """Train another model of the client's on its data."""

    def positions(self, batch_idx: int) -> Tensor:
        """Return which of the client's examples a batch of the present local epoch has."""

    def stored_batches(self, client: int, split: Split = "train") -> Iterator[Batch]:
        """Return all of a client's examples of a split in stored order."""


class Held(Protocol):
    """The module's own tensors, also where a client has replaced them."""

    def view(self) -> State:
        """Return the module's own tensors by key; they change with the module."""

    def actual_state(self) -> State:
        """Return the module's state dict as it is now."""

    def rebind(self) -> None:
        """Copy the values that the module has now into its own tensors, and put those back."""


@dataclass
class ClientContext:
    """What a client update offers to the hooks of an algorithm.

    Between :meth:`ClientHook.on_update_start` and :meth:`ClientHook.on_update_end` the module
    holds the client's weights. State stored here lives for one client update and is discarded if
    it fails.

    Attributes:
        client: Client id.
        round: The number of the client update in its random streams: with synchronous rounds, the
            round's index, from 0.
        version: The version of the global model that the client has received.
        local_epochs: ``federation.local_epochs``, or the passes that ``local_steps`` need.
        local_steps: ``federation.local_steps``.
        epochs: The local epochs of this update, after the hooks' ``num_epochs``.
        num_examples: Number of the client's training examples.
        module: The resident module.
        received: The global model as the client received it; not to be changed.
        scratch: For the hooks' own use until the update ends.
        kept_after: What the client keeps beside the parts of the model, by name.
        sent: The extras that the client sends, by name.
        after_step: Called after every batch with the number of steps so far; what it raises ends
            the training.
    """

    client: int
    round: int
    version: int
    key: Key
    local_epochs: int
    num_examples: int
    module: pl.LightningModule
    received: Mapping[str, Tensor]
    extras: Mapping[str, Tensor]
    before: Mapping[str, Tensor]
    roles: KeyRoles
    parts: Callable[[], Parts]
    held: Held
    counts: Callable[[int, int], Tensor]
    after_step: Callable[[int], None] | None = None
    local_steps: int | None = None
    epochs: int = 0
    scratch: dict[str, Any] = field(default_factory=dict)
    kept_after: State = field(default_factory=dict)
    sent: State = field(default_factory=dict)
    _training: Trains | None = None
    _watched: dict[str, Tensor] = field(default_factory=dict)
    _with_others: bool = False  # in a forward pass with other weights than the module's
    _handles: list[Any] = field(default_factory=list)

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
    def live(self) -> State:
        """The module's state by key; it changes with the module."""
        return self.held.view()

    @property
    def optimizer(self) -> Optimizer:
        """The module's (first) optimizer."""
        return self._trains.optimizer

    @property
    def lr(self) -> float:
        """The optimizer's present learning rate (that of its first group)."""
        return float(self.optimizer.param_groups[0]["lr"])

    def optimizer_memory(self) -> State:
        """Return what the module's optimizers and schedules by step remember, by name, as copies.

        Momentum, Adam's moments, numbers of steps, positions in schedules, and the hyperparameters
        that these have changed.
        """
        return self._trains.optimizer_memory()

    def set_optimizer_memory(self, memory: Mapping[str, Tensor]) -> None:
        """Let the module's optimizers and schedules continue where others have ended.

        Args:
            memory: What :meth:`optimizer_memory` has returned, here or at another client.
        """
        self._trains.set_optimizer_memory(memory)

    def weights(self) -> State:
        """Return copies of the trained parameters."""
        return {key: p.detach().clone() for key, p in self.parameters.items()}

    def set_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Copy values into trained parameters."""
        copy_into({key: self.parameters[key] for key in weights}, weights)

    @torch.no_grad()
    def add_to_weights(self, directions: Mapping[str, Tensor], by: float) -> None:
        """Add ``by`` times a direction to trained parameters, in place."""
        if directions:
            moved: list[Tensor] = [self.parameters[key] for key in directions]
            torch._foreach_add_(moved, list(directions.values()), alpha=by)

    def trained_state(self) -> State:
        """Return copies of all that the client trains, buffers included."""
        return {key: self.live[key].clone() for key in self.roles.trained}

    def train_only(self, part: str) -> None:
        """Let only one part's parameters move from now on, of those that the client trains."""
        keys = set(self.parts().keys(part))
        for key, parameter in self.parameters.items():
            parameter.requires_grad_(key in keys)
            parameter.grad = None

    def head_keys(self) -> tuple[str, ...]:
        """Return the head's keys."""
        return self.parts().head

    def head_name(self) -> str:
        """Return the name of the layer that is the head.

        Raises:
            ConfigError: If the head is not a single layer.
        """
        head = head_module(self.module, self.parts())
        layers = self.module.named_modules()
        name: str | None = next((name for name, child in layers if child is head), None)
        if name is not None:
            return name
        raise ConfigError(
            f"the algorithm needs a head that is one layer; the head of "
            f"{type(self.module).__name__} is several."
        )

    def linear_head(self) -> nn.Linear:
        """Return the head.

        Raises:
            ConfigError: If it is not a single linear layer.
        """
        head = head_module(self.module, self.parts())
        if isinstance(head, nn.Linear):
            return head
        raise ConfigError(
            f"the algorithm needs a head that is one nn.Linear; the head of "
            f"{type(self.module).__name__} is not."
        )

    # -- features --------------------------------------------------------------------------------

    def layer(self, name: str) -> nn.Module:
        """Return a layer of the module by its name, such as ``"body"`` or ``"encoder.layers.3"``.

        Raises:
            ConfigError: If the module has no such layer.
        """
        try:
            return self.module.get_submodule(name)
        except AttributeError:
            known = ", ".join(name for name, _ in self.module.named_children())
            raise ConfigError(
                f"{type(self.module).__name__} has no layer {name!r} (layers: {known})."
            ) from None

    def watch(self, layer: str, inputs: bool = False) -> None:
        """Record a layer's output in every forward pass of this update; see :meth:`features`.

        Args:
            layer: The layer's name in the module, such as ``"body"`` or ``"encoder.layers.3"``.
            inputs: Record its (first) input instead: the features that a head gets.

        Raises:
            ConfigError: If the module has no such layer.
        """

        def record(_: nn.Module, given: tuple[Any, ...], output: Any) -> None:
            self._watched[layer] = given[0] if inputs else output

        self._handles.append(self.layer(layer).register_forward_hook(record))

    def features(self, layer: str) -> Tensor:
        """Return what :meth:`watch` recorded in the last forward pass; gradients flow through it.

        Raises:
            ConfigError: If the layer is not watched, or no forward pass has reached it.
        """
        if layer not in self._watched:
            raise ConfigError(
                f"layer {layer!r} has no features: call context.watch({layer!r}) in "
                "on_update_start, for a layer that every forward pass reaches."
            )
        return self._watched[layer]

    @torch.no_grad()
    def forward_with(
        self, weights: Mapping[str, Tensor], *inputs: Any, layer: str | None = None
    ) -> Any:
        """Run the module's forward pass with other weights; the module itself stays as it is.

        Args:
            weights: Values by key (``context.received``, a kept state, ...); keys that are left
                out have the module's present values.
            *inputs: What ``forward`` takes.
            layer: Return the output of this layer instead of the forward pass's, or its input
                where :meth:`watch` records that.
        """
        before, self._watched, self._with_others = self._watched, {}, True
        state = {**self.live, **{key: weights[key] for key in weights if key in self.live}}
        state = {key: value.detach().clone() for key, value in state.items()}
        try:
            output = torch.func.functional_call(self.module, state, inputs)
            return output if layer is None else self.features(layer)
        finally:
            self._watched, self._with_others = before, False

    # -- training ------------------------------------------------------------------------------

    def gradient(self, batch: Batch, batch_idx: int) -> Tensor | None:
        """Run the user's training step and backward; gradients are in ``parameter.grad`` then.

        Returns:
            The loss, detached; ``None`` where the training step gives none.
        """
        for parameter in self.parameters.values():
            parameter.grad = None
        loss = self._step.gradient(batch, batch_idx)
        return loss.detach() if loss is not None else None

    def hessian_product(
        self, batch: Batch, batch_idx: int, direction: Mapping[str, Tensor]
    ) -> State:
        r"""Return :math:`\nabla^2 f\, v` for the loss of a batch, by differentiating twice.

        Args:
            batch: The batch.
            batch_idx: Its number in the present local epoch.
            direction: v, by key of trained parameters; the result has the same keys.

        Raises:
            ConfigError: If an operation of the network has no second derivative.
        """
        loss = self._step.loss(batch, batch_idx)
        parameters = {key: self.parameters[key] for key in direction}
        zeros = {key: torch.zeros_like(parameter) for key, parameter in parameters.items()}
        if loss is None or not parameters:
            return zeros
        try:
            slopes = gradients_with_graph(loss, parameters)
            return zeros | hessian_product(slopes, parameters, direction)
        except RuntimeError as error:
            if "not implemented" not in str(error) and "differentiable" not in str(error):
                raise
            raise ConfigError(
                f"{type(self.module).__name__} cannot be differentiated twice "
                f"({str(error).splitlines()[0][:120]}); take a method without second derivatives."
            ) from error

    def gradients(self) -> State:
        """Return the present gradients, which the next :meth:`gradient` does not touch."""
        return {key: p.grad for key, p in self.parameters.items() if p.grad is not None}

    def set_gradients(self, gradients: Mapping[str, Tensor]) -> None:
        """Put gradients in place; parameters that are left out get none."""
        for key, parameter in self.parameters.items():
            parameter.grad = gradients.get(key)

    def update(self, batch_idx: int) -> None:
        """Adjust and clip the gradients, take the optimizer's step, forget the gradients."""
        self._step.update(batch_idx)

    def step_optimizer(self, optimizer: FollowingOptimizer) -> None:
        """Clip the gradients of an optimizer of :meth:`optimizer_like`, and take its step.

        It steps with the present learning rates of the module's optimizer, so that schedules by
        step reach it.
        """
        optimizer.follow()
        self._step.clip(optimizer.optimizer)
        optimizer.optimizer.step()

    def replay_rng(self) -> AbstractContextManager[None]:
        """Let torch's random numbers of the ``with`` block be drawn again after it."""
        device = self.module.device
        return torch.random.fork_rng([device] if device.type == "cuda" else [])

    def no_logging(self) -> AbstractContextManager[None]:
        """Drop what the module logs inside the ``with`` block."""
        return self._trains.no_logging()

    @contextmanager
    def swapped_weights(self, weights: Mapping[str, Tensor], buffers: State) -> Iterator[None]:
        """Hold other values in the module inside the block; ``buffers`` take up changes."""
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
        """Register a forward hook on a layer inside the ``with`` block.

        It does not take part in :meth:`forward_with`, which another hook may call there.
        """

        def in_training(*given: Any) -> Any:
            return None if self._with_others else hook(*given)

        handle = layer.register_forward_hook(in_training)
        try:
            yield
        finally:
            handle.remove()

    def optimizer_like(
        self, tensors: Mapping[str, Tensor], lr: float | None = None
    ) -> FollowingOptimizer:
        """Return an optimizer of the module's kind and settings for other tensors.

        Args:
            tensors: By the key of the parameter whose settings they take.
            lr: A learning rate of its own; ``None`` follows that of the module's optimizer.
        """
        keys = {id(parameter): key for key, parameter in self.module.named_parameters()}
        stand_in = lambda p: tensors.get(keys.get(id(p), ""))  # noqa: E731
        return FollowingOptimizer(self.optimizer, stand_in, lr)

    def train_copy(
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
        return self._trains.train_copy(self, start, adjust, epochs)

    # -- examples ------------------------------------------------------------------------------

    def positions(self, batch_idx: int) -> Tensor:
        """Return the places, in the client's stored order, of the examples of a batch.

        Args:
            batch_idx: The batch's number in the present local epoch.

        Returns:
            int64 on the CPU, shape (examples,).
        """
        return self._trains.positions(batch_idx)

    def stored_batches(self) -> Iterator[Batch]:
        """Return all of the client's training examples in stored order, in evaluation batches."""
        return self._trains.stored_batches(self.client)

    def public_batches(self) -> Iterator[Batch]:
        """Return the examples that everybody has, in stored order, in evaluation batches.

        Raises:
            ConfigError: If the data has no split ``public`` that belongs to no client.
        """
        return self._trains.stored_batches(CENTRAL, PUBLIC)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Hold the module in eval mode inside the block: no gradients, no logs, no random numbers.

        What torch draws in it is drawn again after it, so that training does not notice.
        """
        with eval_mode(self.module), torch.no_grad(), self.replay_rng(), self.no_logging():
            yield

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
        """Keep tensors, by model key, for the client's next update."""
        self.kept_after |= {f"{name}/{key}": value for key, value in state.items()}

    def keep_values(self, name: str, value: Tensor) -> None:
        """Keep a single tensor for the client's next update."""
        self.kept_after[name] = value

    def received_extra(self, name: str) -> State:
        """Return what the server has sent under a name, by key; empty if it has sent nothing."""
        return self._under(self.extras, name)

    def received_value(self, name: str) -> Tensor | None:
        """Return a single tensor that the server has sent under a name."""
        value = self.extras.get(name)
        return value.to(self.module.device) if value is not None else None

    def send_extra(self, name: str, value: Mapping[str, Tensor] | Tensor) -> None:
        """Send a declared extra to the server: tensors by key, or a single one."""
        if isinstance(value, Tensor):
            self.sent[name] = value
        else:
            self.sent |= {f"{name}/{key}": tensor for key, tensor in value.items()}

    def first_non_finite(self) -> str | None:
        """Return the first name under which a NaN or an infinity would be kept or sent."""
        return first_non_finite({**self.kept_after, **self.sent})

    # -- the walk ------------------------------------------------------------------------------

    def attach(self, training: Trains) -> None:
        """Let hooks train with this from now on."""
        self._training = training

    def close(self) -> None:
        """Remove what was registered on the module; called however the update ends."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._watched.clear()

    @property
    def _trains(self) -> Trains:
        assert self._training is not None, "the walk attaches what trains before hooks are called"
        return self._training

    @property
    def _step(self) -> GradientStep:
        step = self._trains.gradient_step
        assert step is not None, "for hooks that override local_step"
        return step

    def _under(self, values: Mapping[str, Tensor], name: str) -> State:
        device = self.module.device
        return {key: value.to(device) for key, value in under(values, name).items()}

    # names of releases before 0.2
    quiet, rewound, at = no_logging, replay_rng, swapped_weights
    shift, move, train_apart = add_to_weights, step_optimizer, train_copy
    server, send = received_extra, send_extra
