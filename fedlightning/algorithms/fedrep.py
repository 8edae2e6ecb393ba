"""FedRep: every client fits its own head to the shared body, then moves the body."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fedlightning.algorithms.algorithm import Algorithm
from fedlightning.algorithms.method import ClientHook
from fedlightning.core.validation import check_integer

if TYPE_CHECKING:
    from fedlightning.algorithms.context import ClientContext

__all__ = ["FedRep", "HeadThenBody"]


class HeadThenBody(ClientHook):
    """First some epochs of the head alone, then ``local_epochs`` of the body alone.

    Args:
        head_epochs: Epochs of the head.
    """

    needs_head = True
    needs_global = False

    def __init__(self, head_epochs: int = 10) -> None:
        check_integer("algorithm.head_epochs", head_epochs, at_least=1)
        self.head_epochs = head_epochs

    def num_epochs(self, local_epochs: int) -> int:
        """Return those of the head and of the body."""
        return self.head_epochs + local_epochs

    def on_epoch_start(self, context: ClientContext, epoch: int) -> None:
        """Train the head alone in the first epochs, the body alone afterwards."""
        if epoch in (0, self.head_epochs):
            context.train_only("head" if epoch < self.head_epochs else "body")


class FedRep(Algorithm):
    r"""FedRep: every client fits its own head to the shared body first, then moves the body.

    In an update the head is trained for ``head_epochs`` with the body still, then the body for
    ``federation.local_epochs`` (1 in the paper) with the head still; the head stays with the
    client, bodies are averaged.

    Args:
        head_epochs: Epochs of the head, :math:`\tau` in the paper.
        **choices: Those of :class:`Algorithm`. The paper's mean is uniform over the cohort,
            ``weights="uniform"``; the default weighs by examples, as FedAvg does.

    Source:
        Collins, Hassani, Mokhtari, Shakkottai. Exploiting Shared Representations for Personalized
        Federated Learning. ICML 2021. https://arxiv.org/abs/2102.07078
    """

    def __init__(self, head_epochs: int = 10, **choices: Any) -> None:
        super().__init__(
            train="full", share="body", keep=True, local=[HeadThenBody(head_epochs)], **choices
        )
