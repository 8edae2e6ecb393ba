"""Secure aggregation's arithmetic: integers that are added modulo a power of two."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedlightning.algorithms.aggregation.base import Aggregator, floats_of, require_finite
from fedlightning.core.state import State, Sums
from fedlightning.core.validation import check_integer, check_number
from fedlightning.errors import ConfigError

__all__ = ["IntegerSum", "SecureSum", "decoded", "encoded", "integers_of"]


class SecureSum(Aggregator):
    r"""The mean as secure aggregation computes it: in fixed point, from a sum of integers alone.

    .. math:: x_i = \operatorname{round}\big(2^f \operatorname{clip}(\theta_i - \theta_0, \pm L)
        \big), \qquad \theta \leftarrow \theta_0 + \frac{1}{2^f n}
        \Big(\sum_i x_i \bmod 2^\text{bits}\Big)

    A server that learns nothing but the sum of masked integers can compute this and no more: no
    weights, no medians, no look at one client. So studies see here what secure aggregation costs in
    accuracy and in bytes. The sum is exact and does not depend on the order of clients. In a
    deployment the clients do mask their integers (:mod:`fedlightning.privacy.masking`), and the
    result has the same bits.

    Extras that merge by a mean are part of the sum; others are refused, and so are weights.

    Args:
        limit: :math:`L`, > 0: the largest change of one coordinate; more is cut off.
        bits: 32 or 64: the size of the integers, and of what a client sends for each number.
        max_clients: The largest number of clients whose sum must not overflow. It decides about
            :math:`f`, with the other two.
        threshold: 0.5 or more, below 1: more than this share of a round's clients must be left for
            the masks to come off. Only a deployment has masks.

    Raises:
        ConfigError: If a value is out of its range.

    Source:
        Bonawitz, Ivanov, Kreuter, Marcedone, McMahan, Patel, Ramage, Segal, Seth. Practical Secure
        Aggregation for Privacy-Preserving Machine Learning. CCS 2017.
        https://doi.org/10.1145/3133956.3133982

    Example:
        >>> SecureSum(limit=1.0, bits=32, max_clients=1000).fraction_bits
        21
        >>> merge = SecureSum().start({"w": torch.zeros(2)}, parameters=["w"])
        >>> merge.push({"w": torch.tensor([0.5, -0.25])}, weight=1)
        >>> merge.push({"w": torch.tensor([0.25, 9.0])}, weight=1)
        >>> merge.result()
        {'w': tensor([0.3750, 0.3750])}
    """

    uniform = True

    def __init__(
        self,
        limit: float = 1.0,
        bits: int = 32,
        max_clients: int = 1024,
        threshold: float = 0.5,
    ) -> None:
        name = "federation.aggregator"
        self.limit = check_number(f"{name}.limit", limit, above=0)
        if bits not in (32, 64):
            raise ConfigError(f"{name}.bits must be 32 or 64, got {bits!r}.")
        self.bits = bits
        self.max_clients = check_integer(f"{name}.max_clients", max_clients, at_least=1)
        self.threshold = check_number(f"{name}.threshold", threshold, at_least=0.5, below=1)
        if self.fraction_bits < 1:
            raise ConfigError(
                f"{name}: limit={limit:g} and max_clients={max_clients} leave no bits after the "
                f"point of {bits}-bit integers; lower one of them, or set bits to 64."
            )

    @property
    def fraction_bits(self) -> int:
        """The number of bits after the point, :math:`f`; float64 must hold each integer."""
        room = 2.0 ** (self.bits - 1) - 1
        without_overflow = math.floor(math.log2(room / (self.limit * self.max_clients)))
        return min(without_overflow, math.floor(52 - math.log2(self.limit)))

    def needed(self, clients: int) -> int:
        """Return how many clients must be left of so many, two at least, for the masks to come off.

        Example:
            >>> [SecureSum().needed(n) for n in (2, 3, 4, 10)]
            [2, 2, 3, 6]
            >>> SecureSum(threshold=2 / 3).needed(9)
            7
        """
        return max(math.floor(self.threshold * clients + 1e-9) + 1, 2)

    def start(
        self, reference: Mapping[str, Tensor], parameters: Collection[str], sums: Sums = "float64"
    ) -> IntegerSum:
        """Start the merging of one round."""
        return IntegerSum(self, reference)

    def unmet(self, cohort: int) -> tuple[str, str] | None:
        """Return the condition that so many clients do not meet, and the way out, or ``None``."""
        if cohort <= self.max_clients:
            return None
        return (
            f"{self.name}(max_clients={self.max_clients}) sums {self.max_clients} clients at most",
            "raise max_clients",
        )


class IntegerSum:
    """The sum of one round.

    Args:
        rule: The settings.
        reference: The global state that clients started from.
    """

    def __init__(self, rule: SecureSum, reference: Mapping[str, Tensor]) -> None:
        self._rule = rule
        self._reference = floats_of(reference)
        self._sums = {
            key: np.zeros(tuple(value.shape), np.uint64) for key, value in self._reference.items()
        }
        self._count = 0
        self._weight: float | None = None

    @torch.no_grad()
    def push(self, state: Mapping[str, Tensor], weight: float) -> None:
        """Take one client's state in; it may be overwritten afterwards.

        Raises:
            ConfigError: If the weight is not that of the others.
            ValueError: If keys or shapes differ, or a value is NaN or infinite.
        """
        self._require_equal(weight)
        self._rule.require(self._count + 1)
        for key, whole in integers_of(state, self._reference, self._rule).items():
            self._sums[key] += whole
        self._wrap()
        self._count += 1

    def note(self, weight: float) -> None:
        """Hear of a state whose integers come with :meth:`combine`."""
        self._require_equal(weight)
        self._rule.require(self._count + 1)
        self._count += 1

    def combine(
        self,
        gather: Callable[[Any], Sequence[Any]],
        add_up: Callable[[Tensor], None],
        device: torch.device | None = None,
    ) -> None:
        """Add the sums of those that were noted.

        Args:
            gather: Not needed.
            add_up: Adds to int64 integers, of all tensors by ascending key, modulo ``2 ** 64``.
            device: Not needed: integers are added on the CPU.
        """
        keys = sorted(self._sums)
        flat = np.concatenate([np.zeros(0, np.uint64), *(self._sums[k].reshape(-1) for k in keys)])
        add_up(torch.from_numpy(flat.view(np.int64)))
        ends = np.cumsum([self._sums[key].size for key in keys])[:-1]
        for key, piece in zip(keys, np.split(flat, ends), strict=True):
            self._sums[key] = piece.reshape(self._sums[key].shape)
        self._wrap()

    @torch.no_grad()
    def result(self) -> State:
        """Return the mean, each tensor in its own dtype.

        Raises:
            ValueError: If nothing was pushed.
        """
        if not self._count:
            raise ValueError(f"{self._rule.name} of no states")
        merged: State = {}
        for key, before in self._reference.items():
            mean = decoded(self._sums[key], self._rule) / self._count
            merged[key] = (before.double() + mean.to(before.device)).to(before.dtype)
        return merged

    def _wrap(self) -> None:
        for total in self._sums.values():
            total &= np.uint64(2**self._rule.bits - 1)

    def _require_equal(self, weight: float) -> None:
        self._weight = weight if self._weight is None else self._weight
        if weight != self._weight:
            raise ConfigError(
                f"federation.aggregator: {self._rule.name} adds clients up without weights, and "
                f"got {weight:g} beside {self._weight:g}; set algorithm.weights to uniform."
            )


def integers_of(
    state: Mapping[str, Tensor], reference: Mapping[str, Tensor], rule: SecureSum
) -> dict[str, np.ndarray]:
    """Return what one client adds to the sum.

    Args:
        state: What it has made of the reference.
        reference: Floating-point tensors (:func:`floats_of`).
        rule: The settings.

    Raises:
        ValueError: If keys or shapes differ, or a value is NaN or infinite.

    Example:
        >>> rule = SecureSum(limit=1.0, bits=32, max_clients=2**20)
        >>> integers_of({"w": torch.ones(1)}, {"w": torch.tensor([0.5])}, rule)["w"].tolist()
        [512]
    """
    values = floats_of(state, reference)
    require_finite(values)
    return {
        key: encoded(value.double() - reference[key].double(), rule)
        for key, value in values.items()
    }


def encoded(change: Tensor, rule: SecureSum) -> np.ndarray:
    """Return numbers in fixed point, modulo ``2 ** bits``, as uint64.

    Example:
        >>> rule = SecureSum(limit=1.0, bits=32, max_clients=2**20)
        >>> rule.fraction_bits, encoded(torch.tensor([0.5, -2.0]), rule).tolist()
        (10, [512, 4294966272])
    """
    bounded = change.double().clamp(-rule.limit, rule.limit) * 2.0**rule.fraction_bits
    whole = bounded.round().to(torch.int64).cpu().numpy()
    return whole.astype(np.uint64) & np.uint64(2**rule.bits - 1)


def decoded(total: np.ndarray, rule: SecureSum) -> Tensor:
    """Return the numbers, float64, whose sum is ``total`` modulo ``2 ** bits``."""
    whole = total.astype(np.int64)
    if rule.bits == 32:
        whole = np.where(whole >= 2**31, whole - 2**32, whole)
    return torch.from_numpy(np.ascontiguousarray(whole)).double() / 2.0**rule.fraction_bits
