"""MOON: a client's features are pulled to the global model's, away from its own last model's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fedlightning.algorithms.algorithm import Algorithm
from fedlightning.algorithms.method import ClientHook
from fedlightning.core.batches import Batch
from fedlightning.core.validation import check_number

if TYPE_CHECKING:
    from fedlightning.algorithms.context import ClientContext

__all__ = ["MOON", "ModelContrast"]

_NAME = "moon"


class ModelContrast(ClientHook):
    r"""Adds :math:`\mu\, \ell_{con}` to the loss (see :class:`MOON`).

    Args:
        mu: Weight :math:`\mu` of the term.
        temperature: :math:`\tau`.
        layer: The layer whose output is the features.
    """

    first = True  # it keeps the model as trained, which another hook may replace at the end

    def __init__(self, mu: float, temperature: float, layer: str) -> None:
        check_number("algorithm.mu", mu, at_least=0)
        check_number("algorithm.temperature", temperature, above=0)
        self.mu = mu
        self.temperature = temperature
        self.layer = layer

    def on_update_start(self, context: ClientContext) -> None:
        """Take up the client's last model: at first the global one that it received."""
        context.watch(self.layer)
        context.scratch[_NAME] = context.kept(_NAME) or context.received

    def on_loss(self, context: ClientContext, batch: Batch, loss: Tensor) -> Tensor:
        """Add the term."""
        if not self.mu:
            return loss
        own = context.features(self.layer).flatten(1)
        inputs = batch[0]
        similar = [
            F.cosine_similarity(own, context.forward_with(w, inputs, layer=self.layer).flatten(1))
            for w in (context.received, context.scratch[_NAME])
        ]
        logits = torch.stack(similar, dim=1) / self.temperature
        target = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
        return loss + self.mu * F.cross_entropy(logits, target)

    def on_update_end(self, context: ClientContext) -> None:
        """Keep what was trained."""
        context.keep(_NAME, context.trained_state())


class MOON(Algorithm):
    r"""Model-contrastive federated learning.

    Clients minimise :math:`\ell + \mu\, \ell_{con}` with

    .. math:: \ell_{con} = -\log \frac{\exp(s(z, z_{glob}) / \tau)}
        {\exp(s(z, z_{glob}) / \tau) + \exp(s(z, z_{prev}) / \tau)}

    where :math:`s` is the cosine similarity and :math:`z`, :math:`z_{glob}`, :math:`z_{prev}` are
    the features of an example under the weights in training, the received global model and the
    client's model after its last update. A client that is new has the received one for the latter,
    and so a term without gradient. Batches are (inputs, labels).

    The features are those of ``layer``. The paper's network has a projection head of two layers
    after its encoder: add it to the module to have its features, as they are compared there. The
    two other models see the batch in train mode, as the one in training does.

    Args:
        mu: Weight :math:`\mu` of the term; the paper tries 0.1 to 10.
        temperature: :math:`\tau`; 0.5 in the paper.
        layer: The layer whose output is the features, such as ``body`` or ``encoder.layers.3``.
        **choices: Those of :class:`Algorithm`.

    Source:
        Li, He, Song. Model-Contrastive Federated Learning. CVPR 2021.
        https://arxiv.org/abs/2103.16257

    Example:
        >>> MOON(mu=5.0).local
        (ModelContrast(mu=5.0, temperature=0.5, layer='body'),)
    """

    def __init__(
        self, mu: float = 1.0, temperature: float = 0.5, layer: str = "body", **choices: Any
    ) -> None:
        super().__init__(local=[ModelContrast(mu, temperature, layer)], **choices)
