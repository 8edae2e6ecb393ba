"""Rules that must see all states of a cohort at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from fedlightning.algorithms.aggregation.base import (
    Aggregator,
    check_weight,
    floats_of,
    require_finite,
)
from fedlightning.core.state import State

__all__ = ["Gathered", "blocks"]

_COORDINATES = 16384


class Gathered:
    """A merge that keeps a copy of every state until the result is asked for: O(cohort) memory.

    Args:
        rule: Whose merge it is; says how many states it needs.
        reference: The global state that the clients started from.
        combine: Makes the result of the states, in cohort order, and their weights.
    """

    def __init__(
        self,
        rule: Aggregator,
        reference: Mapping[str, Tensor],
        combine: Callable[[Sequence[State], Sequence[float]], State],
    ) -> None:
        self._rule = rule
        self._reference = reference
        self._combine = combine
        self._states: list[State] = []
        self._weights: list[float] = []

    @torch.no_grad()
    def push(self, state: Mapping[str, Tensor], weight: float) -> None:
        """Take one client's state in; it may be overwritten afterwards.

        Raises:
            ValueError: If the weight is not a finite number > 0, keys or shapes differ from the
                global state's, or a value is NaN or infinite.
        """
        check_weight(weight)
        values = floats_of(state, self._reference)
        require_finite(values)
        self._states.append({key: value.clone() for key, value in values.items()})
        self._weights.append(weight)

    @torch.no_grad()
    def result(self) -> State:
        """Return what the rule makes of the states, each tensor in its own dtype.

        Raises:
            ValueError: If nothing was pushed.
            FederationError: If too few states were pushed for the rule.
        """
        if not self._states:
            raise ValueError(f"{self._rule.name} of no states")
        self._rule.require(len(self._states))
        merged = self._combine(self._states, self._weights)
        return {key: value.to(self._reference[key].dtype) for key, value in merged.items()}


def blocks(states: Sequence[Mapping[str, Tensor]], key: str) -> Iterator[Tensor]:
    """Yield one tensor of all states piece by piece, each of shape (states, coordinates).

    Pieces bound the memory that sorting and subtracting take beside the states themselves.

    Example:
        >>> [b.tolist() for b in blocks([{"w": torch.ones(2)}, {"w": torch.zeros(2)}], "w")]
        [[[1.0, 1.0], [0.0, 0.0]]]
    """
    flat = [state[key].reshape(-1) for state in states]
    for start in range(0, flat[0].numel(), _COORDINATES):
        yield torch.stack([row[start : start + _COORDINATES] for row in flat])
