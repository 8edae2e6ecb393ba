"""LG-FedAvg: bodies stay with the clients."""

from __future__ import annotations

from typing import Any

from fedlightning.algorithms.algorithm import Algorithm

__all__ = ["LGFedAvg"]


class LGFedAvg(Algorithm):
    r"""LG-FedAvg: bodies (local representations) stay with the clients, the head is averaged.

    :math:`\theta_\text{head} \leftarrow \sum_{i \in S} \frac{n_i}{n} \theta_{i,\text{head}}`.

    Args:
        **choices: Those of :class:`Algorithm`. The mean weighs by examples, as the paper's
            formula does.

    Source:
        Liang et al. Think Locally, Act Globally: Federated Learning with Local and Global
        Representations. 2020. https://arxiv.org/abs/2001.01523
    """

    def __init__(self, **choices: Any) -> None:
        super().__init__(train="full", share="head", keep=True, **choices)
