"""`ClientHook`: what takes part in a client update, beside the user's own training step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor, nn

from fedlightning.core.batches import Batch
from fedlightning.core.messages import Down, Up, belongs_to
from fedlightning.core.predictors import Predictor
from fedlightning.core.seeding import Key
from fedlightning.core.state import State
from fedlightning.core.validation import Setting

if TYPE_CHECKING:
    from fedlightning.algorithms.context import ClientContext
    from fedlightning.algorithms.finetuning import FineTuning

__all__ = ["Aggregation", "ClientHook", "LocalMethod", "ServerSide"]


@dataclass(frozen=True)
class ServerSide:
    """What the server has beside messages, for hooks that train or measure there.

    Args:
        module: The module; a hook that changes anything in it works on a copy.
        public_batches: Returns the data's public examples, in stored order, in evaluation batches.
        key: The random stream of the commit.
        model: The whole global model before the round; not to be changed. The module may hold
            other values.
    """

    module: nn.Module
    public_batches: Callable[[], Iterable[Batch]]
    key: Key
    model: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Aggregation:
    """What a hook's server side knows at the end of a round.

    Args:
        state: The hook's entries of the server's state before the round, by name and key.
        extras: What clients sent, merged as declared: a tensor by name and key. Extras that the
            server keeps (``merge="keep"``) are in ``individual`` instead.
        individual: What each client sent of the extras that are kept, in the order in which
            updates were merged: client id and tensors by name and key.
        num_clients: How many updates were merged.
        num_training_clients: The number of clients that take part in training.
        model: The shared part of the global model before the round.
        merged: The shared part as aggregated, before the server optimizer's step.
        version: The number of commits before this one: the round's index.
        side: What the server has beside messages; ``None`` where it has nothing.
        states: The shared part of each update, in the order in which they were merged and, of a
            stale one, as it is merged; for hooks with ``needs_states``.
    """

    state: Mapping[str, Tensor]
    extras: Mapping[str, Tensor]
    individual: Sequence[tuple[int, Mapping[str, Tensor]]] = ()
    num_clients: int = 0
    num_training_clients: int = 0
    model: Mapping[str, Tensor] = field(default_factory=dict)
    merged: Mapping[str, Tensor] = field(default_factory=dict)
    version: int = 0
    side: ServerSide | None = None
    states: Sequence[Mapping[str, Tensor]] = ()


class ClientHook(Setting):
    """One more thing that happens in a client update; a subclass overrides what it needs.

    A hook has settings as attributes and nothing else. What belongs to a client is in its
    :class:`~fedlightning.algorithms.context.ClientContext` (``context.scratch`` for one update,
    ``context.keep`` for good), so an update that fails leaves no trace. The order of the calls is
    :meth:`on_update_start`; in every local epoch :meth:`on_epoch_start`; in every batch
    :meth:`local_step` (where it is overridden), :meth:`on_loss` between the module's training step
    and backward, and :meth:`on_before_optimizer_step`; :meth:`on_epoch_end`; at last
    :meth:`on_update_end`.

    Attributes:
        messages: The extras that the hook sends and receives, declared with
            :class:`~fedlightning.core.messages.Down` and :class:`~fedlightning.core.messages.Up`.
        needs_head: Whether the module must say which part is its head.
        personal_model: Whether it gives clients that train models of their own.
        needs_global: Whether it makes no sense where nothing is shared.
        whole_step: Whether no other hook may change gradients.
        first: Whether its :meth:`on_before_optimizer_step` comes before those of others, to see
            the gradients of the loss alone.
        stateless: Whether clients may keep nothing, whatever else takes part.
        needs_public: Whether it looks at the data's public examples.
        fresh_optimizers: Whether it makes sense only where optimizers start anew in every turn.
        needs_states: Whether its server side looks at every client's shared part; the server then
            holds a round's updates in memory.
        needs_newest: Whether what clients send beside the shared part takes the place of what the
            server has: schedules with stale updates are refused then.
        needs_whole: Whether an update must count in whole: weights that fall with staleness are
            refused then.

    Example:
        A loss term in one method:

        >>> class EntropyPenalty(ClientHook):
        ...     def __init__(self, strength: float = 0.1) -> None:
        ...         self.strength = strength
        ...     def on_update_start(self, context):
        ...         context.watch("head")
        ...     def on_loss(self, context, batch, loss):
        ...         log_p = context.features("head").log_softmax(dim=-1)
        ...         return loss + self.strength * (log_p.exp() * log_p).sum(dim=-1).mean()
    """

    messages: ClassVar[tuple[Down | Up, ...]] = ()
    needs_head = False
    personal_model = False
    needs_global = True
    whole_step = False
    first = False
    stateless = False
    needs_public = False
    needs_states = False
    needs_newest = False
    needs_whole = False
    fresh_optimizers = False

    @property
    def replaces_step(self) -> bool:
        """Whether it defines how to train on a batch; of several hooks only one can."""
        return type(self).local_step is not ClientHook.local_step

    @property
    def changes_gradients(self) -> bool:
        """Whether it changes gradients before the optimizer's step."""
        return type(self).on_before_optimizer_step is not ClientHook.on_before_optimizer_step

    @property
    def changes_loss(self) -> bool:
        """Whether it changes the loss between the training step and backward."""
        return type(self).on_loss is not ClientHook.on_loss

    @property
    def has_phases(self) -> bool:
        """Whether it says how many local epochs an update has."""
        return type(self).num_epochs is not ClientHook.num_epochs

    @property
    def predicts(self) -> bool:
        """Whether it says what a client predicts with."""
        return type(self).predictor is not ClientHook.predictor

    def clash(self, other: ClientHook) -> str | None:
        """Return why this hook and another one cannot be in the same update, or ``None``."""
        if type(self) is type(other):
            return f"both are {type(self).__name__}"
        if self.replaces_step and other.replaces_step:
            return "each says how to train on a batch"
        if self.has_phases and other.has_phases:
            return "each divides an update into phases"
        if all(hook.personal_model or hook.fits for hook in (self, other)):
            return "each gives clients models of their own"
        if self.predicts and other.predicts:
            return "each says what a client predicts with"
        if self.stateless and other.personal_model:
            return (
                f"{type(other).__name__} keeps a model, {type(self).__name__} lets nothing be kept"
            )
        if self.whole_step and other.changes_gradients:
            return f"{type(other).__name__} changes gradients, {type(self).__name__} has its own"
        mine, theirs = ({m.name for m in hook.messages} for hook in (self, other))
        if mine & theirs:
            return f"each has a message {min(mine & theirs)!r}"
        return None

    # -- at the client -------------------------------------------------------------------------

    def num_epochs(self, local_epochs: int) -> int:
        """Return the number of local epochs, given ``federation.local_epochs``."""
        return local_epochs

    def on_update_start(self, context: ClientContext) -> None:
        """Prepare the update; the module holds the state that the client starts from."""

    def on_epoch_start(self, context: ClientContext, epoch: int) -> None:
        """Prepare a local epoch."""

    def local_step(self, context: ClientContext, batch: Batch, batch_idx: int) -> Tensor | None:
        """Train on a batch with ``context.gradient`` and ``context.update``; return the loss."""
        raise NotImplementedError

    def on_loss(self, context: ClientContext, batch: Batch, loss: Tensor) -> Tensor:
        """Return the loss to differentiate, given the one of the module's training step.

        Called between the training step and backward, on the whole loss (before it is divided by
        the number of accumulated batches) and under the trainer's precision.
        """
        return loss

    def on_before_optimizer_step(self, context: ClientContext) -> None:
        """Change the gradients, before they are clipped and the optimizer steps."""

    def on_epoch_end(self, context: ClientContext, epoch: int) -> None:
        """Finish a local epoch, after its last batch."""

    def on_update_end(self, context: ClientContext) -> None:
        """Finish the update; the module holds what the client has trained."""

    def personal(self, kept: Mapping[str, Tensor], model: State) -> State:
        """Return the values in which a client's own model differs from the global one.

        Args:
            kept: All that the client has kept.
            model: The global model with the parts that the client has kept.
        """
        return {}

    @property
    def adapts(self) -> bool:
        """Whether a client's examples make a predictor of their own without training."""
        return type(self).adapt is not ClientHook.adapt

    def adapt(self, batches: Iterable[Batch], module: nn.Module) -> State:
        """Return what a client's training examples, looked at once, add to what it has kept.

        For predictors that need no training: :meth:`predictor` gets it with the rest. It is called
        in eval mode, for any client that is personalised, whether it ever trained or not.

        Args:
            batches: The client's training examples in stored order.
            module: The network with the client's values in it.
        """
        return {}

    # -- in personalization ----------------------------------------------------------------------

    @property
    def tunes(self) -> bool:
        """Whether it takes part in personalization."""
        own, none = type(self), ClientHook
        return (
            own.on_finetuning_start is not none.on_finetuning_start
            or own.on_finetuning_end is not none.on_finetuning_end
        )

    def check_finetuning(self, module: nn.Module, keys: Sequence[str]) -> None:
        """Refuse what cannot be fine-tuned; called before the first round, too.

        Args:
            module: The module.
            keys: The keys that are to be fine-tuned.

        Raises:
            ConfigError: It cannot be.
        """

    @property
    def fits(self) -> bool:
        """Whether it fits a client's own model to the client's examples where it is evaluated."""
        return type(self).fit_personal is not ClientHook.fit_personal

    def fit_personal(self, tuning: FineTuning) -> State:
        """Return the values of a client's own model that follow from its training examples.

        For models that a short computation gives, whether the client ever trained or not. Called
        for every client that is personalised, in eval mode, before it is measured: fine-tuning
        starts from the result, and the client's file holds it. What is drawn comes from the global
        generators, which are seeded for the client. Another hook's :meth:`personal` goes before.

        Args:
            tuning: The client; the module holds the global model with what the client has kept, and
                is not to be changed.
        """
        return {}

    def on_finetuning_start(self, tuning: FineTuning) -> None:
        """Prepare the module that is about to be fine-tuned to a client.

        Called for clients that have training examples, where there are epochs of fine-tuning, after
        the model was measured as it is. Random numbers come from the global generators, which are
        seeded for the client.
        """

    def on_finetuning_end(self, tuning: FineTuning) -> State:
        """Return what :meth:`predictor` needs beside what the client has kept, by name.

        Called after fine-tuning, and with a fine-tuning curve after each of its epochs.
        """
        return {}

    def predictor(self, kept: Mapping[str, Tensor], module: nn.Module) -> Predictor | None:
        """Return what a client predicts with, if that is more than a state of the network.

        It stands in for ``module(inputs)`` when the client is evaluated before and after
        fine-tuning; fine-tuning itself trains the module. The predictor's ``state_dict`` is what
        the client's file gets, and must be enough to make the predictor again.

        Args:
            kept: All that the client has kept, with what :meth:`adapt` or :meth:`on_finetuning_end`
                adds, or what such a file holds.
            module: The network with the client's values in it; they change as it is fine-tuned.
        """
        return None

    # -- at the server -------------------------------------------------------------------------

    def server_state(self, parameters: Mapping[str, Tensor]) -> State:
        """Return the hook's entries of the server's state at the start, by name and key.

        Those that a :class:`~fedlightning.core.messages.Down` declares are sent to clients.

        Args:
            parameters: The global model's parameters that are both trained and shared.
        """
        return {}

    def on_aggregate(self, aggregation: Aggregation) -> State:
        """Return those entries of the server's state that a round has changed."""
        return {}

    def on_merge(self, aggregation: Aggregation) -> State:
        """Return values that take the place of merged ones, before the server optimizer's step."""
        return {}

    def broadcast(self, state: Mapping[str, Tensor], client: int) -> State:
        """Return the extras that a client receives, by name and key.

        Args:
            state: The server's state.
            client: Client id.
        """
        extras: State = {}
        for down in self.messages:
            if not isinstance(down, Down):
                continue
            if not down.per_client:
                extras |= {k: value for k, value in state.items() if belongs_to(k, down.name)}
                continue
            own = f"{down.name}/{client}"
            extras |= {
                down.name + key.removeprefix(own): value
                for key, value in state.items()
                if belongs_to(key, own)
            }
        return extras


class LocalMethod(ClientHook):
    """A hook under the method names of releases before 0.2; derive from :class:`ClientHook`.

    What it sends without a declaration is averaged over clients, and all that its
    :meth:`server_state` returns is sent to them.
    """

    @property
    def replaces_step(self) -> bool:
        """Whether it defines how to train on a batch."""
        return type(self).train_on is not LocalMethod.train_on

    @property
    def changes_gradients(self) -> bool:
        """Whether it changes gradients."""
        return type(self).adjust is not LocalMethod.adjust

    @property
    def has_phases(self) -> bool:
        """Whether it says how many local epochs an update has."""
        return type(self).epochs is not LocalMethod.epochs

    def epochs(self, local_epochs: int) -> int:
        """See :meth:`ClientHook.num_epochs`."""
        return local_epochs

    def begin(self, turn: ClientContext) -> None:
        """See :meth:`ClientHook.on_update_start`."""

    def begin_epoch(self, turn: ClientContext, epoch: int) -> None:
        """See :meth:`ClientHook.on_epoch_start`."""

    def train_on(self, turn: ClientContext, batch: Batch, batch_idx: int) -> Tensor | None:
        """See :meth:`ClientHook.local_step`."""
        raise NotImplementedError

    def adjust(self, turn: ClientContext) -> None:
        """See :meth:`ClientHook.on_before_optimizer_step`."""

    def end(self, turn: ClientContext) -> None:
        """See :meth:`ClientHook.on_update_end`."""

    def merge(
        self, server: Mapping[str, Tensor], extras: Mapping[str, Tensor], clients: int, among: int
    ) -> State:
        """See :meth:`ClientHook.on_aggregate`."""
        return {}

    def num_epochs(self, local_epochs: int) -> int:
        """Call :meth:`epochs`."""
        return self.epochs(local_epochs)

    def on_update_start(self, context: ClientContext) -> None:
        """Call :meth:`begin`."""
        self.begin(context)

    def on_epoch_start(self, context: ClientContext, epoch: int) -> None:
        """Call :meth:`begin_epoch`."""
        self.begin_epoch(context, epoch)

    def local_step(self, context: ClientContext, batch: Batch, batch_idx: int) -> Tensor | None:
        """Call :meth:`train_on`."""
        return self.train_on(context, batch, batch_idx)

    def on_before_optimizer_step(self, context: ClientContext) -> None:
        """Call :meth:`adjust`."""
        self.adjust(context)

    def on_update_end(self, context: ClientContext) -> None:
        """Call :meth:`end`."""
        self.end(context)

    def on_aggregate(self, aggregation: Aggregation) -> State:
        """Call :meth:`merge`."""
        return self.merge(
            aggregation.state,
            aggregation.extras,
            aggregation.num_clients,
            aggregation.num_training_clients,
        )

    def broadcast(self, state: Mapping[str, Tensor], client: int) -> State:
        """Return the whole of the hook's server state."""
        return dict(state)
