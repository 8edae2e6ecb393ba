"""Algorithms in which clients keep a part: FedPer, LG-FedAvg, FedRep, FedBN, Local-only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fedlightning.algorithms.algorithm import Algorithm
from fedlightning.algorithms.method import LocalMethod
from fedlightning.errors import ConfigError

if TYPE_CHECKING:
    from fedlightning.algorithms.context import Turn

__all__ = ["FedBN", "FedPer", "FedRep", "HeadThenBody", "LGFedAvg", "LocalOnly"]


class FedPer(Algorithm):
    r"""Federated learning with personalization layers: heads stay with the clients.

    Clients train body and head together and send the body alone:
    :math:`\theta_\text{body} \leftarrow \sum_{i \in S} \frac{n_i}{n} \theta_{i,\text{body}}`.

    Args:
        **choices: Those of :class:`Algorithm`.

    Source:
        Arivazhagan, Aggarwal, Singh, Choudhary. Federated Learning with Personalization Layers.
        2019. https://arxiv.org/abs/1912.00818
    """

    def __init__(self, **choices: Any) -> None:
        super().__init__(train="full", share="body", keep=True, **choices)


class LGFedAvg(Algorithm):
    r"""LG-FedAvg: bodies (local representations) stay with the clients, the head is averaged.

    :math:`\theta_\text{head} \leftarrow \sum_{i \in S} \frac{n_i}{n} \theta_{i,\text{head}}`.

    Args:
        **choices: Those of :class:`Algorithm`.

    Source:
        Liang et al. Think Locally, Act Globally: Federated Learning with Local and Global
        Representations. 2020. https://arxiv.org/abs/2001.01523
    """

    def __init__(self, **choices: Any) -> None:
        super().__init__(train="full", share="head", keep=True, **choices)


class HeadThenBody(LocalMethod):
    """First some epochs of the head alone, then ``local_epochs`` of the body alone.

    Args:
        head_epochs: Epochs of the head.
    """

    needs_head = True
    needs_global = False

    def __init__(self, head_epochs: int = 10) -> None:
        if isinstance(head_epochs, bool) or not isinstance(head_epochs, int) or head_epochs < 1:
            raise ConfigError(f"algorithm.head_epochs must be an integer >= 1, got {head_epochs}.")
        self.head_epochs = head_epochs

    def epochs(self, local_epochs: int) -> int:
        """Return those of the head and of the body."""
        return self.head_epochs + local_epochs

    def begin_epoch(self, turn: Turn, epoch: int) -> None:
        """Thaw the part whose turn it is."""
        if epoch in (0, self.head_epochs):
            turn.train_only("head" if epoch < self.head_epochs else "body")


class FedRep(Algorithm):
    r"""FedRep: every client fits its own head to the shared body first, then moves the body.

    In a turn the head is trained for ``head_epochs`` with the body still, then the body for
    ``federation.local_epochs`` (1 in the paper) with the head still; the head stays with the
    client, bodies are averaged.

    Args:
        head_epochs: Epochs of the head, :math:`\tau` in the paper.
        **choices: Those of :class:`Algorithm`.

    Source:
        Collins, Hassani, Mokhtari, Shakkottai. Exploiting Shared Representations for Personalized
        Federated Learning. ICML 2021. https://arxiv.org/abs/2102.07078
    """

    def __init__(self, head_epochs: int = 10, **choices: Any) -> None:
        super().__init__(
            train="full", share="body", keep=True, local=[HeadThenBody(head_epochs)], **choices
        )


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


class LocalOnly(Algorithm):
    """No federation: every client trains its own model whenever it is chosen, and shares nothing.

    The baseline that collaboration has to beat. A client that was never chosen has the initial
    model.

    Args:
        **choices: Those of :class:`Algorithm`.
    """

    def __init__(self, **choices: Any) -> None:
        super().__init__(train="full", share="none", keep=True, **choices)
