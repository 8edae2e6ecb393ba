"""FedBN: normalization layers stay with the clients."""

from __future__ import annotations

from typing import Any

from fedlightning.algorithms.algorithm import Algorithm

__all__ = ["FedBN"]


class FedBN(Algorithm):
    r"""FedBN: BatchNorm layers stay with the clients, everything else is averaged.

    Scale, shift and running statistics are those of the client's own data; a client that has never
    trained has the global model's initial ones.

    Args:
        **choices: Those of :class:`Algorithm`.

    Source:
        Li, Jiang, Zhang, Kamp, Dou. FedBN: Federated Learning on Non-IID Features via Local Batch
        Normalization. ICLR 2021. https://arxiv.org/abs/2102.07623
    """

    def __init__(self, **choices: Any) -> None:
        super().__init__(own_norms=True, **choices)
