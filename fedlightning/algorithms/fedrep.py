"""FedRep: every client fits its own head to the shared body, then moves the body."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fedlightning.algorithms.algorithm import Algorithm
from fedlightning.algorithms.method import LocalMethod
from fedlightning.errors import ConfigError

if TYPE_CHECKING:
    from fedlightning.algorithms.context import ClientContext

__all__ = ["FedRep", "HeadThenBody"]


class HeadThenBody(LocalMethod):
    """First some epochs of the head alone, then ``local_epochs`` of the body alone.

    Args:
        head_epochs: Epochs of the head.
    """

    needs_head = True
    needs_global = False

    def __init__(self, head_epochs: int = 10) -> None:
        if isinstance(head_epochs, bool) or not isinstance(head_epochs, int) or head_epochs < 1:
            raise ConfigError(f"algorithm.head_epochs must be an integer >= 1, got {head_epochs}.")
        self.head_epochs = head_epochs

    def epochs(self, local_epochs: int) -> int:
        """Return those of the head and of the body."""
        return self.head_epochs + local_epochs

    def begin_epoch(self, turn: ClientContext, epoch: int) -> None:
        """Thaw the part whose turn it is."""
        if epoch in (0, self.head_epochs):
            turn.train_only("head" if epoch < self.head_epochs else "body")


class FedRep(Algorithm):
    r"""FedRep: every client fits its own head to the shared body first, then moves the body.

    In a turn the head is trained for ``head_epochs`` with the body still, then the body for
    ``federation.local_epochs`` (1 in the paper) with the head still; the head stays with the
    client, bodies are averaged.

    Args:
        head_epochs: Epochs of the head, :math:`\tau` in the paper.
        **choices: Those of :class:`Algorithm`.

    Source:
        Collins, Hassani, Mokhtari, Shakkottai. Exploiting Shared Representations for Personalized
        Federated Learning. ICML 2021. https://arxiv.org/abs/2102.07078
    """

    def __init__(self, head_epochs: int = 10, **choices: Any) -> None:
        super().__init__(
            train="full", share="body", keep=True, local=[HeadThenBody(head_epochs)], **choices
        )
