"""Server optimizers: the clients' mean as a step of an optimizer on the global model."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fedlightning.core.parts import canonical
from fedlightning.core.state import State
from fedlightning.core.validation import Setting, check_integer, check_number

__all__ = [
    "ServerAdagrad",
    "ServerAdam",
    "ServerOptimizer",
    "ServerSGD",
    "ServerTrainingConfig",
    "ServerYogi",
]


class ServerOptimizer(Setting):
    r"""Moves the global model by the mean of the clients' changes.

    With :math:`\Delta_t` the mean of :math:`x_{t,i} - x_t`, it gives :math:`x_{t+1}`. It acts on
    parameters only: statistics of BatchNorm are taken from the mean as they are, because momentum
    would carry a variance below zero.

    A subclass overrides :meth:`step` for a rule that treats every parameter alike, with ``slots``
    the names of what it remembers of each, and :meth:`start` for their first values; or
    :meth:`move` for any other rule. Its attributes are settings and nothing else: what it remembers
    is in the state, which goes into checkpoints.

    Args:
        lr: The server's learning rate.

    Raises:
        ConfigError: If a number is out of its range.
    """

    slots: tuple[str, ...] = ()

    def __init__(self, lr: float = 1.0) -> None:
        check_number("algorithm.lr", lr, above=0)
        self.lr = lr

    def start(self, parameters: Mapping[str, Tensor]) -> State:
        """Return the optimizer's state before the first round: tensors by any names.

        Names of the form ``slot/key`` reach :meth:`step`.

        Args:
            parameters: The global model's shared parameters.
        """
        return {}

    def step(self, delta: Tensor, state: dict[str, Tensor]) -> Tensor:
        """Return by how much a parameter moves.

        Args:
            delta: The mean of the clients' changes of one parameter.
            state: The optimizer's state of this parameter, changed in place.
        """
        raise NotImplementedError

    @torch.no_grad()
    def move(
        self,
        model: Mapping[str, Tensor],
        mean: Mapping[str, Tensor],
        state: Mapping[str, Tensor],
        clients: int,
        among: int,
    ) -> tuple[State, State]:
        """Return the next values of the shared parameters, and the optimizer's next state.

        Args:
            model: The global model's shared parameters.
            mean: The clients' mean of the same keys.
            state: The optimizer's state; it is not changed.
            clients: How many clients the mean is of.
            among: The number of clients that take part in training.
        """
        moved: State = {}
        after: dict[str, Tensor] = {}
        for key, now in model.items():
            own = {n: state[f"{n}/{key}"].clone() for n in self.slots if f"{n}/{key}" in state}
            moved[key] = now + self.step(mean[key] - now, own).to(now.dtype)
            after |= {f"{name}/{key}": value for name, value in own.items()}
        return moved, after


class ServerSGD(ServerOptimizer):
    r"""SGD with momentum: :math:`v \leftarrow \beta v + \Delta`, :math:`x \leftarrow x + \eta v`.

    Args:
        lr: The server's learning rate :math:`\eta`.
        momentum: :math:`\beta`, in [0, 1).

    Source:
        Hsu, Qi, Brown. Measuring the Effects of Non-Identical Data Distribution for Federated
        Visual Classification. 2019. https://arxiv.org/abs/1909.06335
    """

    slots = ("momentum",)

    def __init__(self, lr: float = 1.0, momentum: float = 0.0) -> None:
        super().__init__(lr)
        check_number("algorithm.momentum", momentum, at_least=0, below=1)
        self.momentum = momentum

    def start(self, parameters: Mapping[str, Tensor]) -> State:
        """Return momentum of zero."""
        if not self.momentum:
            return {}
        return {f"momentum/{key}": torch.zeros_like(value) for key, value in parameters.items()}

    def step(self, delta: Tensor, state: dict[str, Tensor]) -> Tensor:
        """Return the step."""
        if not self.momentum:
            return self.lr * delta
        state["momentum"] = self.momentum * state["momentum"] + delta
        return self.lr * state["momentum"]


class _Adaptive(ServerOptimizer):
    slots = ("m", "v")

    def __init__(self, lr: float, beta1: float, beta2: float | None, tau: float) -> None:
        super().__init__(lr)
        check_number("algorithm.beta1", beta1, at_least=0, below=1)
        check_number("algorithm.tau", tau, above=0)
        self.beta1 = beta1
        if beta2 is not None:
            check_number("algorithm.beta2", beta2, at_least=0, below=1)
            self.beta2 = beta2
        self.tau = tau

    def start(self, parameters: Mapping[str, Tensor]) -> State:
        r"""Return :math:`m = 0` and :math:`v = \tau^2`."""
        state = {f"m/{key}": torch.zeros_like(value) for key, value in parameters.items()}
        return state | {
            f"v/{key}": torch.full_like(value, self.tau**2) for key, value in parameters.items()
        }

    def step(self, delta: Tensor, state: dict[str, Tensor]) -> Tensor:
        """Return the step."""
        state["m"] = self.beta1 * state["m"] + (1 - self.beta1) * delta
        state["v"] = self.second_moment(state["v"], delta.square())
        return self.lr * state["m"] / (state["v"].sqrt() + self.tau)

    def second_moment(self, v: Tensor, square: Tensor) -> Tensor:
        """Return the next second moment."""
        raise NotImplementedError


class ServerAdagrad(_Adaptive):
    r"""Adagrad: :math:`v \leftarrow v + \Delta^2`.

    The step is :math:`x \leftarrow x + \eta\, m / (\sqrt{v} + \tau)`.

    Args:
        lr: The server's learning rate :math:`\eta`.
        beta1: Decay of the mean :math:`m` of the changes; 0 in the paper.
        tau: How far the step adapts: large is nearer to SGD.

    Source:
        Reddi et al. Adaptive Federated Optimization. ICLR 2021. https://arxiv.org/abs/2003.00295
    """

    def __init__(self, lr: float = 0.01, beta1: float = 0.0, tau: float = 1e-3) -> None:
        super().__init__(lr, beta1, None, tau)

    def second_moment(self, v: Tensor, square: Tensor) -> Tensor:
        """Return the sum of squares."""
        return v + square


class ServerAdam(_Adaptive):
    r"""Adam: :math:`v \leftarrow \beta_2 v + (1 - \beta_2) \Delta^2`, without bias correction.

    Args:
        lr: The server's learning rate :math:`\eta`.
        beta1: Decay of the mean of the changes.
        beta2: Decay of the mean of their squares.
        tau: How far the step adapts.

    Source:
        Reddi et al. Adaptive Federated Optimization. ICLR 2021. https://arxiv.org/abs/2003.00295
    """

    beta2: float

    def __init__(
        self, lr: float = 0.01, beta1: float = 0.9, beta2: float = 0.99, tau: float = 1e-3
    ) -> None:
        super().__init__(lr, beta1, beta2, tau)

    def second_moment(self, v: Tensor, square: Tensor) -> Tensor:
        """Return the decayed mean of squares."""
        return self.beta2 * v + (1 - self.beta2) * square


class ServerYogi(ServerAdam):
    r"""Yogi: :math:`v \leftarrow v - (1 - \beta_2) \Delta^2 \operatorname{sign}(v - \Delta^2)`.

    Its arguments are those of :class:`ServerAdam`.

    Source:
        Reddi et al. Adaptive Federated Optimization. ICLR 2021. https://arxiv.org/abs/2003.00295
    """

    def second_moment(self, v: Tensor, square: Tensor) -> Tensor:
        """Return a mean of squares that falls as slowly as it rises."""
        return v - (1 - self.beta2) * square * torch.sign(v - square)


class ServerTrainingConfig(Setting):
    """How the server trains.

    Args:
        fraction: The share of the clients' training examples of which the server has a copy.
        epochs: Passes over them in every round.
        part: What it trains, a part or an expression; ``None`` means what clients train.
    """

    def __init__(self, fraction: float, epochs: int, part: str | None) -> None:
        check_number("algorithm.fraction", fraction, above=0, at_most=1)
        check_integer("algorithm.epochs", epochs, at_least=1)
        self.fraction = fraction
        self.epochs = epochs
        self.part = canonical(part, "algorithm.part") if part is not None else None
