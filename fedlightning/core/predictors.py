"""What a client predicts with: its state in the network, or a rule over several models."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from torch import nn

from fedlightning.core.state import State
from fedlightning.errors import ConfigError

__all__ = ["Predictor", "PredictorModule", "StatePredictor", "predicting_with"]


class Predictor(Protocol):
    """A client's model: what it predicts, and the tensors that make it the client's own."""

    def predict(self, inputs: Any) -> Any:
        """Return what the client predicts for inputs, in place of ``module(inputs)``."""

    def state_dict(self) -> State:
        """Return what the client does not share with the global model."""


class StatePredictor:
    """The common kind: the network itself, holding the client's state.

    Args:
        module: The network with the client's values in it.
        own: Those that it does not share with the global model.
    """

    def __init__(self, module: nn.Module, own: State) -> None:
        self._module = module
        self._own = own

    def predict(self, inputs: Any) -> Any:
        """Return ``module(inputs)``."""
        return self._module(inputs)

    def state_dict(self) -> State:
        """Return the values that the client does not share with the global model."""
        return self._own


class PredictorModule(nn.Module):
    """A predictor as a module, for what takes modules: ``torch.export``, for instance.

    Args:
        predictor: The predictor.
        module: The module that it is built on.

    Example:
        >>> import torch
        >>> double = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.constant_(double.weight, 2.0)
        >>> class Negated:
        ...     def predict(self, inputs):
        ...         return -double(inputs)
        >>> PredictorModule(Negated(), double)(torch.ones(1)).item()
        -2.0
    """

    def __init__(self, predictor: Predictor, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self._predictor = predictor

    def forward(self, inputs: Any) -> Any:
        """Return what the predictor predicts."""
        return self._predictor.predict(inputs)


@contextmanager
def predicting_with(predictor: Predictor | None, module: nn.Module) -> Iterator[None]:
    """Have ``module(inputs)`` be what a predictor predicts, inside the ``with`` block.

    The predictor itself may call the module, which then is what it was.

    Args:
        predictor: The predictor; ``None`` leaves the module as it is.
        module: The module.

    Raises:
        ConfigError: The block has not called the module.

    Example:
        >>> import torch
        >>> class Negated:
        ...     def predict(self, inputs):
        ...         return -double(inputs)
        >>> double = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.constant_(double.weight, 2.0)
        >>> with predicting_with(Negated(), double), torch.no_grad():
        ...     double(torch.tensor([3.0]))
        tensor([-6.])
    """
    if predictor is None:
        yield
        return
    own, calls = vars(module), 0
    before = own.get("forward")

    def put_back() -> None:
        own.pop("forward", None)
        if before is not None:
            own["forward"] = before

    def forward(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        put_back()
        try:
            return predictor.predict(*args, **kwargs)
        finally:
            own["forward"] = forward

    own["forward"] = forward
    try:
        yield
    finally:
        put_back()
    if not calls:
        raise ConfigError(
            f"{type(module).__name__} was evaluated without a call of self(inputs), so "
            f"{type(predictor).__name__}, which predicts in its place, was not asked; call "
            "self(inputs) in test_step."
        )
