"""A rule of aggregation as a setting, and one round's merging as an object of its own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from typing import ClassVar, Protocol

from torch import Tensor

from fedlightning.core.state import State, Sums, as_real, first_non_finite
from fedlightning.core.validation import Setting
from fedlightning.errors import ConfigError, FederationError

__all__ = ["Accumulator", "Aggregator", "check_weight", "floats_of", "require_finite"]


class Accumulator(Protocol):
    """One round's merging: states go in, in cohort order, and the next global state comes out."""

    def push(self, state: Mapping[str, Tensor], weight: float) -> None:
        """Take one client's state in; it may be overwritten afterwards.

        Raises:
            ValueError: If the weight is not a finite number > 0, keys or shapes differ, or a value
                is NaN or infinite (a plain mean, which keeps only a sum, says so at the end).
        """

    def result(self) -> State:
        """Return the floating-point tensors of the new state, each in its own dtype.

        Raises:
            ValueError: If nothing was pushed, or the result is not finite.
            FederationError: If the rule cannot work with as few states as were pushed.
        """


class Aggregator(Setting, ABC):
    """How a server merges a cohort's states; what ``federation.aggregator`` takes.

    Attributes:
        robust: Whether it bounds what a few hostile clients can do. Such a rule merges extras
            together with the model, as one vector, and is refused where it cannot.
        uniform: Whether all clients count alike to it, because it sees no weights.
    """

    robust: ClassVar[bool] = True
    uniform: ClassVar[bool] = False

    @property
    def name(self) -> str:
        """The name to show."""
        return type(self).__name__

    @abstractmethod
    def start(
        self, reference: Mapping[str, Tensor], parameters: Collection[str], sums: Sums = "float64"
    ) -> Accumulator:
        """Start the merging of one round.

        Args:
            reference: The global state that the clients started from, as far as they share it. It
                must stay as it is until the result is there.
            parameters: Those of its keys that are trainable parameters; the rest are buffers.
            sums: Precision in which means are taken. Distances and norms are in float64 anyhow.
        """

    def unmet(self, cohort: int) -> tuple[str, str] | None:
        """Return the condition that so many clients do not meet, and the way out, or ``None``."""
        return None

    def check(self, cohort: int, given_by: str = "federation.cohort_size") -> None:
        """Refuse a number of clients a round with which the rule cannot work.

        Args:
            cohort: How many updates are merged at once.
            given_by: The setting that says so.

        Raises:
            ConfigError: If it is too small.
        """
        if (problem := self.unmet(cohort)) is not None:
            condition, way_out = problem
            raise ConfigError(
                f"federation.aggregator: {condition}, {given_by} gives {cohort}; {way_out}."
            )

    def require(self, received: int) -> None:
        """Refuse a round in which so few clients succeeded that the rule cannot work.

        Raises:
            FederationError: If they are too few.
        """
        if (problem := self.unmet(received)) is not None:
            condition, way_out = problem
            updates = "update" if received == 1 else "updates"
            raise FederationError(
                f"federation.aggregator: {condition}, only {received} {updates} came in; {way_out}."
            )


def check_weight(weight: float) -> None:
    """Refuse a weight that would spoil a mean.

    Raises:
        ValueError: If it is not a finite number > 0.
    """
    if not 0 < weight < float("inf"):
        raise ValueError(f"weight must be a finite number > 0, got {weight}")


def floats_of(state: Mapping[str, Tensor], like: Mapping[str, Tensor] | None = None) -> State:
    """Return the floating-point tensors of a state, those of complex numbers as pairs.

    Args:
        state: Tensors by key.
        like: A state that it must resemble.

    Raises:
        ValueError: If keys or shapes of the floating-point tensors differ.

    Example:
        >>> import torch
        >>> floats_of({"w": torch.zeros(1), "n": torch.tensor(3)})
        {'w': tensor([0.])}
    """
    values = as_real(state)
    if like is not None:
        expected = as_real(like).keys()
        if values.keys() != expected:
            raise ValueError(f"keys differ: {sorted(values.keys() ^ expected)}")
        for key, value in values.items():
            if value.shape != like[key].shape:
                raise ValueError(
                    f"shapes differ: {key} is {tuple(value.shape)}, not {tuple(like[key].shape)}"
                )
    return values


class NotFinite(FederationError, ValueError):
    """A state that no rule can compare or add."""


def require_finite(state: Mapping[str, Tensor]) -> None:
    """Refuse values that no rule can compare or add.

    Raises:
        NotFinite: If one is NaN or infinite.
    """
    if (bad := first_non_finite(state)) is not None:
        raise NotFinite(f"{bad} holds a NaN or an infinity")
