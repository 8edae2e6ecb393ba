"""FedBABU: only the body is trained and averaged; the head stays as it was initialised."""

from __future__ import annotations

from typing import Any

from fedlightning.algorithms.algorithm import Algorithm, Weights

__all__ = ["FedBABU"]


class FedBABU(Algorithm):
    r"""Federated averaging with body aggregation and body update.

    All clients share one random head that is never trained. Clients train the body; the server
    takes
    :math:`\theta_\text{body} \leftarrow \frac{1}{|S|} \sum_{i \in S} \theta_{i,\text{body}}`. The
    head is fine-tuned per client afterwards
    (:class:`fedlightning.callbacks.PersonalizationCallback`).

    Args:
        weights: ``uniform`` as in the authors' code, ``examples`` as in the paper's formula; the
            two are the same where all clients have equally many examples.
        **choices: Those of :class:`Algorithm`.

    Source:
        Oh, Kim, Yun. FedBABU: Toward Enhanced Representation for Federated Image Classification.
        ICLR 2022. https://arxiv.org/abs/2106.06042

    Example:
        >>> FedBABU().train, FedBABU().share
        ('body', 'body')
    """

    def __init__(self, weights: Weights = "uniform", **choices: Any) -> None:
        super().__init__(train="body", share="body", weights=weights, **choices)
