"""FedAvg with a server optimizer: FedAvgM, FedAdagrad, FedAdam, FedYogi."""

from __future__ import annotations

from typing import Any

from fedlightning.algorithms.algorithm import Algorithm
from fedlightning.algorithms.server_step import ServerAdagrad, ServerAdam, ServerSGD, ServerYogi

__all__ = ["FedAdagrad", "FedAdam", "FedAvgM", "FedYogi"]


class FedAvgM(Algorithm):
    r"""FedAvg with server momentum.

    With :math:`\Delta` the clients' mean change,
    :math:`v \leftarrow \beta v + \Delta`, :math:`\theta \leftarrow \theta + \eta v`.

    Args:
        lr: The server's learning rate :math:`\eta`.
        momentum: :math:`\beta`.
        **choices: Those of :class:`Algorithm`. The mean weighs by examples, as the paper's
            formula does.

    Source:
        Hsu, Qi, Brown. Measuring the Effects of Non-Identical Data Distribution for Federated
        Visual Classification. 2019. https://arxiv.org/abs/1909.06335
    """

    def __init__(self, lr: float = 1.0, momentum: float = 0.9, **choices: Any) -> None:
        super().__init__(server=ServerSGD(lr, momentum), **choices)


class FedAdagrad(Algorithm):
    r"""FedAvg with Adagrad at the server.

    :math:`m \leftarrow \beta_1 m + (1 - \beta_1) \Delta`, :math:`v \leftarrow v + \Delta^2`,
    :math:`\theta \leftarrow \theta + \eta\, m / (\sqrt{v} + \tau)`; :math:`v` starts at
    :math:`\tau^2`.

    Args:
        lr: The server's learning rate :math:`\eta`.
        beta1: :math:`\beta_1`; 0 in the paper.
        tau: :math:`\tau`, how far the step adapts.
        **choices: Those of :class:`Algorithm`. The paper's mean is uniform over the cohort,
            ``weights="uniform"``; the default weighs by examples, as FedAvg does.

    Source:
        Reddi et al. Adaptive Federated Optimization. ICLR 2021. https://arxiv.org/abs/2003.00295
    """

    def __init__(
        self, lr: float = 0.01, beta1: float = 0.0, tau: float = 1e-3, **choices: Any
    ) -> None:
        super().__init__(server=ServerAdagrad(lr, beta1, tau), **choices)


class FedAdam(Algorithm):
    r"""FedAvg with Adam at the server.

    As :class:`FedAdagrad`, with :math:`v \leftarrow \beta_2 v + (1 - \beta_2) \Delta^2`.

    Args:
        lr: The server's learning rate :math:`\eta`.
        beta1: :math:`\beta_1`.
        beta2: :math:`\beta_2`.
        tau: :math:`\tau`, how far the step adapts.
        **choices: Those of :class:`Algorithm`. The paper's mean is uniform over the cohort,
            ``weights="uniform"``; the default weighs by examples, as FedAvg does.

    Source:
        Reddi et al. Adaptive Federated Optimization. ICLR 2021. https://arxiv.org/abs/2003.00295
    """

    def __init__(
        self,
        lr: float = 0.01,
        beta1: float = 0.9,
        beta2: float = 0.99,
        tau: float = 1e-3,
        **choices: Any,
    ) -> None:
        super().__init__(server=ServerAdam(lr, beta1, beta2, tau), **choices)


class FedYogi(Algorithm):
    r"""FedAvg with Yogi at the server.

    As :class:`FedAdagrad`, with
    :math:`v \leftarrow v - (1 - \beta_2) \Delta^2 \operatorname{sign}(v - \Delta^2)`.

    Args:
        lr: The server's learning rate :math:`\eta`.
        beta1: :math:`\beta_1`.
        beta2: :math:`\beta_2`.
        tau: :math:`\tau`, how far the step adapts.
        **choices: Those of :class:`Algorithm`. The paper's mean is uniform over the cohort,
            ``weights="uniform"``; the default weighs by examples, as FedAvg does.

    Source:
        Reddi et al. Adaptive Federated Optimization. ICLR 2021. https://arxiv.org/abs/2003.00295
    """

    def __init__(
        self,
        lr: float = 0.01,
        beta1: float = 0.9,
        beta2: float = 0.99,
        tau: float = 1e-3,
        **choices: Any,
    ) -> None:
        super().__init__(server=ServerYogi(lr, beta1, beta2, tau), **choices)
