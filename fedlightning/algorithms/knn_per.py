"""kNN-Per: the global model's prediction, mixed with the classes of a client's nearest examples."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fedlightning.algorithms.algorithm import Algorithm
from fedlightning.algorithms.features import forward_features
from fedlightning.algorithms.method import ClientHook
from fedlightning.core.batches import Batch, class_labels
from fedlightning.core.state import State
from fedlightning.core.validation import check_integer, check_number

if TYPE_CHECKING:
    from fedlightning.algorithms.finetuning import FineTuning

__all__ = ["KNNPer", "LocalMemory", "NearestNeighbours"]

_FEATURES, _LABELS = "knn_per/features", "knn_per/labels"


class NearestNeighbours:
    """Mixes a network's prediction with the classes of the nearest of a client's examples.

    Args:
        module: The network.
        settings: Those of the mixture.
        features: Features of the client's examples, shape (n, d).
        labels: Their classes, shape (n,).
    """

    def __init__(
        self, module: nn.Module, settings: LocalMemory, features: Tensor, labels: Tensor
    ) -> None:
        self._module, self._settings = module, settings
        self._features, self._labels = features, labels

    def predict(self, inputs: Any) -> Tensor:
        """Return the logarithms of probabilities, shape (examples, classes)."""
        settings = self._settings
        logits, features = forward_features(self._module, settings.layer, inputs)
        known, labels = self._features.to(features), self._labels.to(features.device)
        squared = torch.cdist(features, known, compute_mode="donot_use_mm_for_euclid_dist").square()
        near = squared.topk(min(settings.k, len(known)), dim=1, largest=False)
        weights = (-near.values / (features.shape[1] * settings.scale)).softmax(dim=1)
        votes = torch.zeros_like(logits).scatter_add_(
            1, labels[near.indices], weights.to(logits.dtype)
        )
        mixed = settings.weight * votes + (1 - settings.weight) * logits.softmax(dim=1)
        return mixed.clamp(min=torch.finfo(mixed.dtype).tiny).log()

    def state_dict(self) -> State:
        """Return the features and classes of the client's examples."""
        return {_FEATURES: self._features, _LABELS: self._labels}


class LocalMemory(ClientHook):
    """Has a client predict with the help of its own examples.

    Its arguments are those of :class:`KNNPer`.
    """

    needs_global = False

    def __init__(self, weight: float, k: int, scale: float, layer: str) -> None:
        check_number("algorithm.weight", weight, at_least=0, at_most=1)
        check_integer("algorithm.k", k, at_least=1)
        check_number("algorithm.scale", scale, above=0)
        self.weight = weight
        self.k = k
        self.scale = scale
        self.layer = layer

    def adapt(self, batches: Iterable[Batch], module: nn.Module) -> State:
        """Return features and classes of the client's examples; nothing if it has none."""
        seen = [
            (forward_features(module, self.layer, batch[0])[1], class_labels(batch, "KNNPer"))
            for batch in batches
        ]
        if not seen:
            return {}
        return {
            _FEATURES: torch.cat([z for z, _ in seen]),
            _LABELS: torch.cat([y for _, y in seen]),
        }

    def on_finetuning_end(self, tuning: FineTuning) -> State:
        """Have the examples looked at anew, by the network as it is then."""
        return {}

    def predictor(self, kept: Mapping[str, Tensor], module: nn.Module) -> NearestNeighbours | None:
        """Return what mixes both predictions."""
        if _FEATURES not in kept:
            return None
        return NearestNeighbours(module, self, kept[_FEATURES], kept[_LABELS])


class KNNPer(Algorithm):
    r"""Personalization by local memorization.

    The network is trained as in FedAvg, or as what it is composed with says. A client, also one
    that has never trained, predicts
    :math:`\lambda\, h_{kNN}(x) + (1 - \lambda)\, h(x)`, where :math:`h` are the network's
    probabilities and

    .. math:: [h_{kNN}(x)]_y \propto \sum_{i \in N_k(x)} 1[y_i = y]\,
        \exp\left(-\frac{\|\phi(x) - \phi(x_i)\|^2}{d\, s}\right)

    with the :math:`k` of its training examples whose features :math:`\phi`, of dimension
    :math:`d`, are nearest. Their features come from the network that predicts, in eval mode, so
    they are those of the final global model after training, and computed anew after fine-tuning.

    The kernel is that of the published code; the paper's is :math:`\exp(-\|\cdot\|)`. The paper
    chooses :math:`\lambda` for each client by its validation data; here it is the same for all. A
    client's saved file holds its examples' features and classes: keep it where the data may be.

    Args:
        weight: :math:`\lambda`: 0 is the network, 1 the neighbours alone.
        k: Number of neighbours :math:`k`; 10 in the paper.
        scale: Scale :math:`s` of the kernel.
        layer: The layer whose output is the features, such as ``body``.
        **choices: Those of :class:`Algorithm`.

    Source:
        Marfoq, Neglia, Kameni, Vidal. Personalized Federated Learning through Local Memorization.
        ICML 2022. https://arxiv.org/abs/2111.09360

    Example:
        >>> KNNPer(k=5).local
        (LocalMemory(weight=0.5, k=5, scale=1.0, layer='body'),)
    """

    def __init__(
        self,
        weight: float = 0.5,
        k: int = 10,
        scale: float = 1.0,
        layer: str = "body",
        **choices: Any,
    ) -> None:
        super().__init__(local=[LocalMemory(weight, k, scale, layer)], **choices)
