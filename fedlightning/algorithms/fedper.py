"""FedPer: heads stay with the clients."""

from __future__ import annotations

from typing import Any

from fedlightning.algorithms.algorithm import Algorithm

__all__ = ["FedPer"]


class FedPer(Algorithm):
    r"""Federated learning with personalization layers: heads stay with the clients.

    Clients train body and head together and send the body alone:
    :math:`\theta_\text{body} \leftarrow \sum_{i \in S} \frac{n_i}{n} \theta_{i,\text{body}}`.

    Args:
        **choices: Those of :class:`Algorithm`. The mean weighs by examples, as the paper's
            formula does.

    Source:
        Arivazhagan, Aggarwal, Singh, Choudhary. Federated Learning with Personalization Layers.
        2019. https://arxiv.org/abs/1912.00818
    """

    def __init__(self, **choices: Any) -> None:
        super().__init__(train="full", share="body", keep=True, **choices)
