"""FedAvg: everything is trained, everything is averaged; and the same with a server optimizer."""

from __future__ import annotations

from typing import Any

from fedlightning.algorithms.algorithm import Algorithm

__all__ = ["FedAvg"]


class FedAvg(Algorithm):
    r"""Federated averaging.

    Clients train the whole model; the server takes
    :math:`\theta \leftarrow \sum_{i \in S} \frac{n_i}{n} \theta_i`.

    Args:
        **choices: Those of :class:`Algorithm`, such as ``weights="uniform"`` for :math:`1/|S|`.

    Source:
        McMahan, Moore, Ramage, Hampson, Agüera y Arcas. Communication-Efficient Learning of Deep
        Networks from Decentralized Data. AISTATS 2017. https://arxiv.org/abs/1602.05629

    Example:
        >>> FedAvg().train, FedAvg().share
        ('full', 'full')
    """

    def __init__(self, **choices: Any) -> None:
        super().__init__(**choices)
