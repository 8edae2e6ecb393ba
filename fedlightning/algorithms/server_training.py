"""`ServerTraining`: how a server trains on data of its own."""

from __future__ import annotations

from fedlightning.algorithms.method import check_number
from fedlightning.errors import ConfigError
from fedlightning.core.parts import Part
from fedlightning.core.validation import Value

__all__ = ["ServerTraining"]


class ServerTraining(Value):
    """How the server trains.

    Args:
        fraction: The share of the clients' training examples of which the server has a copy.
        epochs: Passes over them in every round.
        part: What it trains; ``None`` means what clients train.
    """

    def __init__(self, fraction: float, epochs: int, part: Part | None) -> None:
        check_number("fraction", fraction, most=1.0, open_=True)
        if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 1:
            raise ConfigError(f"algorithm.epochs must be an integer >= 1, got {epochs}.")
        if part not in (None, "full", "body", "head"):
            raise ConfigError(f"algorithm.part must be one of full, body, head, got {part!r}.")
        self.fraction = fraction
        self.epochs = epochs
        self.part = part
