"""FedBN: normalization layers stay with the clients."""

from __future__ import annotations

from typing import Any

from fedlightning.algorithms.algorithm import Algorithm
from fedlightning.core.parts import canonical, without

__all__ = ["FedBN"]


class FedBN(Algorithm):
    r"""FedBN: BatchNorm layers stay with the clients, everything else is averaged.

    Scale, shift and running statistics are those of the client's own data; a client that has never
    trained has the global model's initial ones.

    Args:
        share: What is averaged but for its BatchNorm layers.
        **choices: Those of :class:`Algorithm`. The paper's mean is uniform over the cohort,
            ``weights="uniform"``; the default weighs by examples, as FedAvg does.

    Source:
        Li, Jiang, Zhang, Kamp, Dou. FedBN: Federated Learning on Non-IID Features via Local Batch
        Normalization. ICLR 2021. https://arxiv.org/abs/2102.07623
    """

    def __init__(self, share: str | None = None, **choices: Any) -> None:
        share = canonical(share, "algorithm.share") if share is not None else "full"
        super().__init__(share=without(share, "norm"), **choices)
