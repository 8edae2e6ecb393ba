"""Ditto: beside the global model every client trains one of its own, pulled towards the former."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from fedlightning.algorithms.algorithm import Algorithm
from fedlightning.algorithms.fedprox import pull
from fedlightning.algorithms.method import ClientHook
from fedlightning.core.state import State, under
from fedlightning.core.validation import check_integer, check_number

if TYPE_CHECKING:
    from fedlightning.algorithms.context import ClientContext

__all__ = ["Ditto", "OwnModel"]

_NAME = "ditto"


class OwnModel(ClientHook):
    r"""Trains a model of the client's own, with :math:`\frac{\lambda}{2} \|v_i - w_t\|^2`.

    Args:
        strength: :math:`\lambda`.
        epochs: Its epochs in a turn; ``None`` means ``federation.local_epochs``.
    """

    personal_model = True

    def __init__(self, strength: float, epochs: int | None = None) -> None:
        check_number("algorithm.strength", strength, at_least=0)
        if epochs is not None:
            check_integer("algorithm.epochs", epochs, at_least=1)
        self.strength = strength
        self.own_epochs = epochs

    def on_update_start(self, context: ClientContext) -> None:
        """Train the client's own model, apart from what it will send."""
        trained = context.train_copy(
            context.kept(_NAME),
            adjust=lambda: pull(context, self.strength),
            epochs=self.own_epochs or context.local_epochs,
        )
        context.keep(_NAME, trained)

    def personal(self, kept: Mapping[str, Tensor], model: State) -> State:
        """Return the client's own model."""
        return under(kept, _NAME)


class Ditto(Algorithm):
    r"""Ditto.

    A chosen client trains the global model :math:`w_t` as in FedAvg and, apart from that, its own
    model by :math:`v_i \leftarrow v_i - \eta (\nabla F_i(v_i) + \lambda (v_i - w_t))`. A client's
    own model starts as the first global model that it received.

    Args:
        strength: :math:`\lambda`: 0 is local training, large values are the global model.
        epochs: Local epochs of the client's own model; ``None`` means ``federation.local_epochs``.
        **choices: Those of :class:`Algorithm`. The paper's mean is uniform over the cohort,
            ``weights="uniform"``; the default weighs by examples, as FedAvg does.

    Source:
        Li, Hu, Beirami, Smith. Ditto: Fair and Robust Federated Learning Through Personalization.
        ICML 2021. https://arxiv.org/abs/2012.04221
    """

    def __init__(self, strength: float = 0.75, epochs: int | None = None, **choices: Any) -> None:
        super().__init__(local=[OwnModel(strength, epochs)], **choices)
