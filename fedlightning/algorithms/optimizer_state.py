"""Optimizer state that outlives a client update: kept by the client, or passed on to the next."""

from __future__ import annotations

from fedlightning.algorithms.context import ClientContext
from fedlightning.algorithms.method import Aggregation, ClientHook
from fedlightning.core.messages import Down, Up
from fedlightning.core.state import State
from fedlightning.errors import FederationError

__all__ = ["KeepsOptimizerState", "PassesOptimizerStateOn"]

_NAME = "optimizer_state"


class KeepsOptimizerState(ClientHook):
    """Lets a client's optimizers and schedules by step continue in its next turn.

    What ``federation.optimizer_state: keep`` adds to an algorithm. It concerns the module's
    optimizers; those that an algorithm adds for models of its own start as they do without it.
    """

    needs_global = False

    def clash(self, other: ClientHook) -> str | None:
        """Return why this hook and another one cannot be in the same update, or ``None``."""
        if other.fresh_optimizers:
            return f"{type(other).__name__} needs optimizers that start anew in every turn"
        if other.stateless:
            return f"{type(other).__name__} lets clients keep nothing"
        return super().clash(other)

    def on_update_start(self, context: ClientContext) -> None:
        """Continue where the client's last turn has ended."""
        if memory := context.kept(_NAME):
            context.set_optimizer_memory(memory)

    def on_update_end(self, context: ClientContext) -> None:
        """Keep the state."""
        context.keep(_NAME, context.optimizer_memory())


class PassesOptimizerStateOn(ClientHook):
    """Hands the state of optimizers and schedules by step from client to client, with the model.

    What ``federation.optimizer_state: pass_on`` adds to an algorithm: one optimizer goes round.
    Clients must train one after another.
    """

    messages = (Down(_NAME), Up(_NAME, merge="keep"))

    def clash(self, other: ClientHook) -> str | None:
        """Return why this hook and another one cannot be in the same update, or ``None``."""
        if other.fresh_optimizers:
            return f"{type(other).__name__} needs optimizers that start anew in every turn"
        return super().clash(other)

    def on_update_start(self, context: ClientContext) -> None:
        """Continue where the client before has ended."""
        if memory := context.received_extra(_NAME):
            context.set_optimizer_memory(memory)

    def on_update_end(self, context: ClientContext) -> None:
        """Send the state."""
        context.send_extra(_NAME, context.optimizer_memory())

    def on_aggregate(self, aggregation: Aggregation) -> State:
        """Hold the state for the next client.

        Raises:
            FederationError: If several clients have sent one.
        """
        if len(aggregation.individual) != 1:
            raise FederationError(
                f"federation.optimizer_state: {len(aggregation.individual)} clients of one commit "
                "have sent a state, and only one can be passed on."
            )
        ((_, sent),) = aggregation.individual
        return dict(sent)
