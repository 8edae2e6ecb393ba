"""IFCA: several models; each client trains the one that fits its data best."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F

from fedlightning.algorithms.algorithm import Algorithm
from fedlightning.algorithms.method import Aggregation, ClientHook
from fedlightning.core.batches import class_labels
from fedlightning.core.messages import Down, Up
from fedlightning.core.state import State, under
from fedlightning.core.validation import check_integer

if TYPE_CHECKING:
    from fedlightning.algorithms.context import ClientContext

__all__ = ["IFCA", "BestCluster"]

_NAME = "ifca"
_SUM, _COUNT, _CHOSEN = f"{_NAME}_sum", f"{_NAME}_count", f"{_NAME}:cluster"


class BestCluster(ClientHook):
    """Has a client start from the cluster's model of least loss, and sends what it trains for it.

    Args:
        num_clusters: Number of models.
    """

    messages = (Down(_NAME), Up(_SUM, merge="sum"), Up(_COUNT, merge="sum"))
    personal_model = True
    needs_global = False
    needs_newest = True  # the models of clusters

    def __init__(self, num_clusters: int) -> None:
        self.num_clusters = check_integer("algorithm.num_clusters", num_clusters, at_least=1)

    def on_update_start(self, context: ClientContext) -> None:
        """Choose a cluster; take up its model."""
        models = [self._model(context, cluster) for cluster in range(self.num_clusters)]
        losses = [0.0] * self.num_clusters
        with context.evaluating():
            for batch in context.stored_batches():
                labels = class_labels(batch, "IFCA")
                for cluster, model in enumerate(models):
                    logits = context.forward_with(model, batch[0])
                    losses[cluster] += float(F.cross_entropy(logits, labels, reduction="sum"))
        chosen = losses.index(min(losses))
        context.set_weights(models[chosen])
        context.scratch[_NAME] = chosen

    def on_update_end(self, context: ClientContext) -> None:
        """Send the weights for the chosen cluster; keep its number."""
        chosen = context.scratch[_NAME]
        context.send_extra(_SUM, {f"{chosen}/{key}": w for key, w in context.weights().items()})
        context.send_extra(_COUNT, {str(chosen): torch.tensor(1)})
        context.keep_values(_CHOSEN, torch.tensor(chosen))

    def on_aggregate(self, aggregation: Aggregation) -> State:
        """Return the means of the clusters that somebody has chosen."""
        counts = under(aggregation.extras, _COUNT)
        return {
            f"{_NAME}/{key}": total / counts[key.partition("/")[0]]
            for key, total in under(aggregation.extras, _SUM).items()
        }

    def _model(self, context: ClientContext, cluster: int) -> State:
        """Return a cluster's weights: those that the server has, or else its first ones."""
        if known := context.received_extra(f"{_NAME}/{cluster}"):
            return known
        first = {key: context.received[key] for key in context.parameters}
        if cluster == 0:
            return first
        generator = torch.Generator().manual_seed(cluster)
        shuffled = {}
        for key, value in first.items():
            order = torch.randperm(value.numel(), generator=generator).to(value.device)
            shuffled[key] = value.flatten()[order].reshape(value.shape)
        return shuffled


class IFCA(Algorithm):
    r"""The iterative federated clustering algorithm.

    The server has :math:`k` models and sends all of them. A client takes
    :math:`\hat j = \arg\min_j F_i(\theta_j)` on its training data, trains from
    :math:`\theta_{\hat j}` and sends the result :math:`\tilde\theta_i`; the server takes
    :math:`\theta_j \leftarrow \sum_{i: \hat j_i = j} \tilde\theta_i / |\{i: \hat j_i = j\}|` (the
    paper's model averaging). A model that nobody chooses stays as it is. For classification: the
    loss that decides is the cross-entropy of the module's output, in eval mode.

    The first model starts as the module's weights, the others as the same numbers in another order
    within each tensor. A client's own model is the one that it has trained last, not its cluster's
    mean after that; one that has never trained has the module's initial weights. Buffers are the
    clients' own. With one cluster it is FedAvg with uniform weights, but for that.

    Args:
        num_clusters: Number of models :math:`k`; the server sends so many models to each client.
        **choices: Those of :class:`Algorithm`.

    Source:
        Ghosh, Chung, Yin, Ramchandran. An Efficient Framework for Clustered Federated Learning.
        NeurIPS 2020. https://arxiv.org/abs/2006.04088

    Example:
        >>> IFCA(num_clusters=3).local
        (BestCluster(num_clusters=3),)
    """

    def __init__(self, num_clusters: int = 2, **choices: Any) -> None:
        super().__init__(train="full", share="none", local=[BestCluster(num_clusters)], **choices)
