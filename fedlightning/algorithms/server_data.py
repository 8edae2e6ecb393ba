"""Data that the server has, too: the merged model is trained on them before it goes out again."""

from __future__ import annotations

from typing import Any

from fedlightning.algorithms.algorithm import Algorithm
from fedlightning.algorithms.server_step import ServerTrainingConfig

__all__ = ["ServerData"]


class ServerData(Algorithm):
    r"""The server has a copy of a few of all clients' examples and trains on them each round.

    After aggregation the server takes ``epochs`` passes over a fixed random share ``fraction`` of
    the clients' training examples, with the module's own training step and optimizer, and sends out
    what that gives. It is the setting in which the FedBABU paper asks which part the server should
    update. Meant for compositions: ``FedBABU() + ServerData(fraction=0.05)``.

    Args:
        fraction: The share of the clients' training examples of which the server has a copy.
        epochs: Passes over them in every round.
        part: What the server trains, a part or an expression such as ``adapter + head``; ``None``
            means what clients train.
        **choices: Those of :class:`Algorithm`.

    Source:
        Oh, Kim, Yun. FedBABU: Toward Enhanced Representation for Federated Image Classification.
        ICLR 2022, section 4. https://arxiv.org/abs/2106.06042
    """

    def __init__(
        self,
        fraction: float = 0.05,
        epochs: int = 1,
        part: str | None = None,
        **choices: Any,
    ) -> None:
        super().__init__(server_data=ServerTrainingConfig(fraction, epochs, part), **choices)
