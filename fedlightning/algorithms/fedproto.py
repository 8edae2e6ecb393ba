"""FedProto: clients share the mean features of their classes; the nearest mean predicts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedlightning.algorithms.algorithm import Algorithm
from fedlightning.algorithms.features import forward_features
from fedlightning.algorithms.method import Aggregation, ClientHook
from fedlightning.core.batches import Batch, class_labels
from fedlightning.core.messages import Down, Up
from fedlightning.core.state import State, under
from fedlightning.core.validation import check_number

if TYPE_CHECKING:
    from fedlightning.algorithms.context import ClientContext

__all__ = ["ClassPrototypes", "FedProto", "NearestPrototype"]

_NAME = "fedproto"
_SUM, _COUNT = f"{_NAME}_sum", f"{_NAME}_count"


class NearestPrototype:
    """Predicts the class whose prototype is nearest to an example's features.

    Args:
        module: The network.
        layer: The layer whose output is the features.
        prototypes: A vector of features by class.
    """

    def __init__(self, module: nn.Module, layer: str, prototypes: Mapping[str, Tensor]) -> None:
        self._module, self._layer, self._prototypes = module, layer, prototypes

    def predict(self, inputs: Any) -> Tensor:
        """Return minus the squared distances, shape (examples, classes).

        A class without a prototype is further away than all others, by one.
        """
        logits, features = forward_features(self._module, self._layer, inputs)
        classes = [int(label) for label in self._prototypes]
        table = torch.stack(list(self._prototypes.values())).to(features)
        near = -(features[:, None] - table).square().sum(dim=2).to(logits.dtype)
        scores = near.amin(dim=1, keepdim=True).expand_as(logits) - 1
        return scores.index_copy(1, torch.tensor(classes, device=logits.device), near)

    def state_dict(self) -> State:
        """Return the prototypes."""
        return {f"{_NAME}/{label}": value for label, value in self._prototypes.items()}


class ClassPrototypes(ClientHook):
    """Sends sums and counts of features by class, and pulls features to the common means.

    Args:
        strength: Weight of the term.
        layer: The layer whose output is the features.
    """

    messages = (Down(_NAME), Up(_SUM, merge="sum"), Up(_COUNT, merge="sum"))
    personal_model = True
    needs_global = False

    def __init__(self, strength: float, layer: str) -> None:
        check_number("algorithm.strength", strength, at_least=0)
        self.strength = strength
        self.layer = layer

    def on_update_start(self, context: ClientContext) -> None:
        """Take up the common prototypes; there are none in the first round."""
        context.watch(self.layer)
        context.scratch[_NAME] = context.received_extra(_NAME)

    def on_loss(self, context: ClientContext, batch: Batch, loss: Tensor) -> Tensor:
        """Add the term."""
        features, common = context.features(self.layer).flatten(1), context.scratch[_NAME]
        labels, target = class_labels(batch, "FedProto"), features.detach().clone()
        for label in set(map(str, labels.tolist())) & common.keys():
            target[labels == int(label)] = common[label].to(target.dtype)
        return loss + self.strength * F.mse_loss(features, target)

    def on_update_end(self, context: ClientContext) -> None:
        """Send sums and counts; keep the client's prototypes, and others' of further classes."""
        sums: State = {}
        counts: State = {}
        with context.evaluating():
            for batch in context.stored_batches():
                context.module(batch[0])
                features = context.features(self.layer).flatten(1)
                labels = class_labels(batch, "FedProto")
                for label in map(str, sorted(set(labels.tolist()))):
                    rows = labels == int(label)
                    sums[label] = sums.get(label, 0) + features[rows].sum(dim=0)
                    counts[label] = counts.get(label, 0) + rows.sum()
        context.send_extra(_SUM, sums)
        context.send_extra(_COUNT, counts)
        own = {label: total / counts[label] for label, total in sums.items()}
        context.keep(_NAME, {**context.scratch[_NAME], **own})

    def on_aggregate(self, aggregation: Aggregation) -> State:
        """Return the means over all examples of each class that there was in the round."""
        sums, counts = under(aggregation.extras, _SUM), under(aggregation.extras, _COUNT)
        return {f"{_NAME}/{label}": total / counts[label] for label, total in sums.items()}

    def predictor(self, kept: Mapping[str, Tensor], module: nn.Module) -> NearestPrototype | None:
        """Return what predicts by the nearest of the prototypes that the client has kept."""
        prototypes = under(kept, _NAME)
        return NearestPrototype(module, self.layer, prototypes) if prototypes else None


class FedProto(Algorithm):
    r"""Federated prototype learning.

    Models stay with the clients. A client minimises :math:`\ell + \lambda\, \overline{\|f_i(x) -
    \bar C^{(y)}\|^2}` (the mean over examples and features), where :math:`\bar C^{(j)}` is the
    common prototype of class :math:`j`, and sends for each of its classes the sum and the number
    of its features. The server takes
    :math:`\bar C^{(j)} = \sum_i \sum_{x \in D_{ij}} f_i(x) / \sum_i |D_{ij}|` over the round's
    clients; a class that none of them has keeps its prototype. A client predicts
    :math:`\arg\min_j \|f_i(x) - C^{(j)}\|`.

    The paper's equation 6 divides by the number of clients once more, which shrinks prototypes; its
    code takes the plain mean over clients. The term is that of the code, by example. The features
    :math:`f_i` that are sent are those of the trained model, in eval mode. A client predicts with
    its own prototypes, and for classes that it does not have with the common ones that it received.
    Batches are (inputs, labels).

    Args:
        strength: Weight :math:`\lambda` of the term; 1 in the paper.
        layer: The layer whose output is the features, such as ``body``.
        **choices: Those of :class:`Algorithm`.

    Source:
        Tan, Long, Liu, Zhou, Lu, Jiang, Zhang. FedProto: Federated Prototype Learning across
        Heterogeneous Clients. AAAI 2022. https://arxiv.org/abs/2105.00243

    Example:
        >>> FedProto(strength=0.5).share
        'none'
    """

    def __init__(self, strength: float = 1.0, layer: str = "body", **choices: Any) -> None:
        super().__init__(
            train="full", share="none", local=[ClassPrototypes(strength, layer)], **choices
        )
