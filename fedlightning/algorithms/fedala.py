"""FedALA: a client starts from its own model and the global one, mixed element by element."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fedlightning.algorithms.algorithm import Algorithm
from fedlightning.algorithms.method import ClientHook
from fedlightning.core.parts import canonical
from fedlightning.core.state import State, under
from fedlightning.core.validation import check_integer, check_number

if TYPE_CHECKING:
    from fedlightning.algorithms.context import ClientContext

__all__ = ["AdaptiveStart", "FedALA"]

_NAME = "fedala"
_WEIGHTS = f"{_NAME}:weights"


class AdaptiveStart(ClientHook):
    """Learns how to mix the client's last model with the received one, and starts there.

    Its arguments are those of :class:`FedALA`.
    """

    needs_head = True
    personal_model = True

    def __init__(self, eta: float, part: str, first_epochs: int) -> None:
        check_number("algorithm.eta", eta, at_least=0)
        check_integer("algorithm.first_epochs", first_epochs, at_least=1)
        self.eta = eta
        self.part = canonical(part, "algorithm.part")
        self.first_epochs = first_epochs

    def on_update_start(self, context: ClientContext) -> None:
        """Learn the weights on the client's data; take up the mixture."""
        last = context.kept(_NAME)
        part = context.parameters.keys() & context.shared & set(context.parts().keys(self.part))
        keys = [key for key in last if key in part]
        if not keys:
            return
        away = {key: context.received[key] - last[key] for key in keys}
        known = context.kept(_WEIGHTS)
        weights = {key: known.get(key, torch.ones_like(away[key])) for key in keys}

        def mixture() -> State:
            return {key: last[key] + weights[key] * away[key] for key in keys}

        @torch.no_grad()
        def learn() -> None:
            for key, gradient in context.gradients().items():
                if key in weights:
                    step = self.eta * gradient * away[key]
                    weights[key] = (weights[key] - step).clamp(0, 1)
            context.set_gradients({})  # the model moves with the weights, and not by itself
            context.set_weights(mixture())

        context.train_copy(mixture(), adjust=learn, epochs=1 if known else self.first_epochs)
        context.set_weights(mixture())
        context.keep(_WEIGHTS, weights)

    def on_update_end(self, context: ClientContext) -> None:
        """Keep what was trained."""
        context.keep(_NAME, context.trained_state())

    def personal(self, kept: Mapping[str, Tensor], model: State) -> State:
        """Return the client's model after its last update."""
        return under(kept, _NAME)


class FedALA(Algorithm):
    r"""Adaptive local aggregation.

    A client that has trained before starts from
    :math:`\hat\theta_i = \theta_i + W_i \odot (\theta - \theta_i)`, where :math:`\theta_i` is its
    model after its last update, :math:`\theta` the global one, and :math:`W_i` lies in [0, 1] and
    is 1 outside ``part``. It learns :math:`W_i`, 1 at first and kept from then on, by
    :math:`W_i \leftarrow clip(W_i - \eta\, \nabla_{\hat\theta} \ell(\hat\theta_i) \odot
    (\theta - \theta_i), 0, 1)` on each of its batches, and then trains and sends as in FedAvg. A
    client's own model is the one that it has trained last.

    The paper learns :math:`W_i` on a random 80 % of the client's data, and the first time until the
    loss settles; here it is all of them, and ``first_epochs`` passes the first time. Later it is
    one pass, as in the paper. Each of these passes costs as much as a local epoch.

    Args:
        eta: Learning rate :math:`\eta` of the weights; 1 in the paper. With 0 it is FedAvg.
        part: Where weights are learnt: the ``head``, or an expression such as ``full``.
        first_epochs: Passes the first time.
        **choices: Those of :class:`Algorithm`.

    Source:
        Zhang, Hua, Wang, Song, Xue, Ma, Guan. FedALA: Adaptive Local Aggregation for Personalized
        Federated Learning. AAAI 2023. https://arxiv.org/abs/2212.01197

    Example:
        >>> FedALA(eta=0.5).local
        (AdaptiveStart(eta=0.5, part='head', first_epochs=10),)
    """

    def __init__(
        self, eta: float = 1.0, part: str = "head", first_epochs: int = 10, **choices: Any
    ) -> None:
        super().__init__(local=[AdaptiveStart(eta, part, first_epochs)], **choices)
