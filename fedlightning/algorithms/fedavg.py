"""FedAvg: everything is trained, everything is averaged."""

from __future__ import annotations

from fedlightning.aggregation import Sums
from fedlightning.algorithms.base import Algorithm, Weights

__all__ = ["FedAvg"]


class FedAvg(Algorithm):
    r"""Federated averaging.

    Clients train the whole model; the server takes
    :math:`\theta \leftarrow \sum_{i \in S} \frac{n_i}{n} \theta_i`.

    Args:
        weights: ``examples`` for the formula above, ``uniform`` for :math:`1/|S|`.
        sums: Precision in which the server adds.

    Source:
        McMahan, Moore, Ramage, Hampson, Agüera y Arcas. Communication-Efficient Learning of Deep
        Networks from Decentralized Data. AISTATS 2017. https://arxiv.org/abs/1602.05629

    Example:
        >>> FedAvg().train, FedAvg().share
        ('full', 'full')
    """

    def __init__(self, weights: Weights = "examples", sums: Sums = "float64") -> None:
        super().__init__(train="full", share="full", weights=weights, sums=sums)
