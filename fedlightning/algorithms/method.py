"""`LocalMethod`: what takes part in a client's turn, beside the user's own training step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor, nn

from fedlightning.core.batches import Batch
from fedlightning.core.predictors import Predictor
from fedlightning.core.state import State
from fedlightning.core.validation import Setting

if TYPE_CHECKING:
    from fedlightning.algorithms.context import ClientContext

__all__ = ["LocalMethod"]


class LocalMethod(Setting):
    """One more thing that happens in a client's turn; a subclass overrides what it needs.

    A method has settings and nothing else: whatever belongs to a client is in its
    :class:`~fedlightning.algorithms.context.ClientContext` (``turn.scratch`` for the turn,
    ``turn.keep`` for good), so a turn that fails leaves no trace. The order is: :meth:`begin`, then
    in every local epoch :meth:`begin_epoch`, in every batch :meth:`train_on` (where it is
    overridden) and, between backward and the optimizer's step, :meth:`adjust`; at last :meth:`end`.

    Attributes:
        needs_head: Whether the module must say which part is its head.
        personal_model: Whether it gives clients models of their own.
        needs_global: Whether it makes no sense where nothing is shared.
        whole_step: Whether nobody else may change gradients.
        first: Whether its :meth:`adjust` comes before those of others, to see bare gradients.
    """

    needs_head = False
    personal_model = False
    needs_global = True
    whole_step = False
    first = False

    @property
    def steps_itself(self) -> bool:
        """Whether it says how to train on a batch; of several methods only one can."""
        return type(self).train_on is not LocalMethod.train_on

    @property
    def adjusts(self) -> bool:
        """Whether it changes gradients."""
        return type(self).adjust is not LocalMethod.adjust

    def clash(self, other: LocalMethod) -> str | None:
        """Return why this method and another one cannot be in the same turn, or ``None``."""
        if type(self) is type(other):
            return f"both are {type(self).__name__}"
        if self.steps_itself and other.steps_itself:
            return "each says how to train on a batch"
        if self.personal_model and other.personal_model:
            return "each gives clients models of their own"
        if self.whole_step and other.adjusts:
            return f"{type(other).__name__} changes gradients, {type(self).__name__} has its own"
        return None

    # -- at the client -------------------------------------------------------------------------

    def epochs(self, local_epochs: int) -> int:
        """Return the number of local epochs, given ``federation.local_epochs``."""
        return local_epochs

    def begin(self, turn: ClientContext) -> None:
        """Make ready; the module holds what the client starts from."""

    def begin_epoch(self, turn: ClientContext, epoch: int) -> None:
        """A local epoch starts."""

    def train_on(self, turn: ClientContext, batch: Batch, batch_idx: int) -> Tensor | None:
        """Train on a batch with the context's ``gradient`` and ``update``; return the loss."""
        raise NotImplementedError

    def adjust(self, turn: ClientContext) -> None:
        """Change the gradients, before they are clipped and the optimizer steps."""

    def end(self, turn: ClientContext) -> None:
        """Come to an end; the module holds what the client has trained."""

    def personal(self, kept: Mapping[str, Tensor], model: State) -> State:
        """Return the values in which a client's own model differs from the global one.

        Args:
            kept: All that the client has kept.
            model: The global model with the parts that the client has kept.
        """
        return {}

    def predictor(self, kept: Mapping[str, Tensor], module: nn.Module) -> Predictor | None:
        """Return what a client predicts with, if that is more than a state of the network.

        It stands in for ``module(inputs)`` when the client is evaluated before and after
        fine-tuning; fine-tuning itself trains the module. The predictor's ``state_dict`` is what
        the client's file gets, and must be enough to make the predictor again.

        Args:
            kept: All that the client has kept, or what such a file holds.
            module: The network with the client's values in it; they change as it is fine-tuned.
        """
        return None

    # -- at the server -------------------------------------------------------------------------

    def server_state(self, parameters: Mapping[str, Tensor]) -> State:
        """Return what the server has for this method at the start; clients get it each round.

        Args:
            parameters: The global model's parameters that are both trained and shared.
        """
        return {}

    def merge(
        self, server: Mapping[str, Tensor], extras: Mapping[str, Tensor], clients: int, among: int
    ) -> State:
        """Return those entries of the server's state that a round has changed.

        Args:
            server: The state before.
            extras: The plain mean of what clients sent along (``turn.send``).
            clients: How many have sent.
            among: The number of clients that take part in training.
        """
        return {}
