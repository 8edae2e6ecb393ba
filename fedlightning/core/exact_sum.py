"""Sums whose bits do not depend on the order or the grouping of what is added."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fedlightning.core.state import State

__all__ = ["ExactSums"]

_DIGIT = 32  # bits of a digit
_DIGITS = 4
_MOST = 1 << 20  # terms that fit before a float64 integer may lose a bit
_BASE = 2.0**_DIGIT
_LOWEST = -30  # further down, powers of the base leave float64's range
_BLOCK = 1 << 14  # numbers whose digits fit a core's cache


class ExactSums:
    r"""The sums of weighted tensors, by key, independent of the order in which terms come.

    A term :math:`w x` is rounded once to float64 and then written with four signed digits of 32
    bits, counted from a common first digit for the whole tensor; digits are added as integers,
    without any rounding. So 96 bits below the tensor's largest term are exact, and what is below is
    rounded in the same way for every order: where a float64 sum of n terms is off by up to n units
    in its last place, this one is off by one. After Demmel and Nguyen, "Parallel Reproducible
    Summation", IEEE Transactions on Computers 64(7), 2015, with digits for bins.

    Example:
        >>> one, other = ExactSums(), ExactSums()
        >>> values = [torch.tensor([1e16]), torch.tensor([1.0]), torch.tensor([-1e16])]
        >>> for value in values:
        ...     one.add({"w": value}, 1.0)
        >>> for value in reversed(values):
        ...     other.add({"w": value}, 1.0)
        >>> one.result()["w"], other.result()["w"]
        (tensor([1.], dtype=torch.float64), tensor([1.], dtype=torch.float64))
    """

    def __init__(self) -> None:
        self._digits: dict[str, Tensor] = {}
        self._first: dict[str, int] = {}
        self._terms = 0

    @torch.no_grad()
    def add(self, values: Mapping[str, Tensor], weight: float) -> None:
        """Add ``weight`` times each value.

        Args:
            values: Floating-point tensors; with a NaN or an infinity, the sum there is not finite.
            weight: A finite number.

        Raises:
            OverflowError: After a million terms.
        """
        self._count(1)
        for key, value in values.items():
            self._let_first_be(key, _first_of(value, weight), value.shape, value.device)
            scale, flat = _BASE ** -self._first[key], value.reshape(-1)
            for block, sums in _blocks(self._digits[key]):
                rest = flat[block].to(torch.float64) * weight
                rest.mul_(scale)
                for digits in sums:
                    digit = torch.round(rest)
                    digits.add_(digit)
                    rest.sub_(digit).mul_(_BASE)

    def result(self) -> State:
        """Return the sums in float64."""
        return {key: self._sum(key) for key in self._digits}

    @torch.no_grad()
    def combine(
        self,
        gather: Callable[[Any], Sequence[Any]],
        add_up: Callable[[Tensor], None],
        device: torch.device | None = None,
    ) -> None:
        """Add the sums of other processes to this one's; all of them must call it.

        Args:
            gather: Returns every process's value of something small.
            add_up: Replaces a tensor by its sum over all processes, in whatever order.
            device: Where the sums are, should this process have none.
        """
        mine = {key: (self._first[key], tuple(d.shape[1:])) for key, d in self._digits.items()}
        everyone = gather((self._terms, mine))
        self._count(sum(terms for terms, _ in everyone) - self._terms)
        firsts: dict[str, int] = {}
        shapes: dict[str, tuple[int, ...]] = {}
        for _, theirs in everyone:
            for key, (first, shape) in theirs.items():
                firsts[key], shapes[key] = max(first, firsts.get(key, first)), shape
        device = next((digits.device for digits in self._digits.values()), device)
        for key, first in firsts.items():
            self._let_first_be(key, first, shapes[key], device)
        keys = sorted(firsts)
        if keys:
            flat = torch.cat([self._digits[key].reshape(-1) for key in keys])
            add_up(flat)
            pieces = torch.split(flat, [self._digits[key].numel() for key in keys])
            for key, piece in zip(keys, pieces, strict=True):
                self._digits[key] = piece.view_as(self._digits[key])

    def _count(self, terms: int) -> None:
        self._terms += terms
        if self._terms > _MOST:
            raise OverflowError(f"an exact sum has at most {_MOST} terms")

    def _let_first_be(
        self, key: str, first: int, shape: Sequence[int], device: torch.device | None
    ) -> None:
        """Let a tensor's first digit be at least this one; those that leave at the end are lost."""
        if key not in self._digits:
            self._first[key] = first
            self._digits[key] = torch.zeros(_DIGITS, *shape, dtype=torch.float64, device=device)
            return
        up = first - self._first[key]
        if up > 0:
            digits = self._digits[key]
            moved = torch.zeros_like(digits)
            moved[0] = digits[0] * 0  # a NaN stays
            if up < _DIGITS:
                moved[up:] = digits[:-up]
            self._first[key], self._digits[key] = first, moved

    @torch.no_grad()
    def _sum(self, key: str) -> Tensor:
        every = self._digits[key]
        total = torch.empty_like(every[0])
        flat = total.view(-1)
        for block, sums in _blocks(every):
            flat[block] = _number(sums).mul_(_BASE ** self._first[key])
        return total


def _blocks(digits: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield where a part of a tensor lies in it, and the digits of that part.

    What is done to a few numbers at a time, digit by digit, stays in the cache.
    """
    size = digits[0].numel()
    flat = digits.view(_DIGITS, size)
    step = _BLOCK if digits.device.type == "cpu" else max(size, 1)
    for start in range(0, size, step):
        block = slice(start, start + step)
        yield block, flat[:, block]


def _number(sums: Tensor) -> Tensor:
    """Return the numbers that digits stand for, in units of the first one."""
    digits = list(sums.clone())
    # floor makes the digits unique, whatever was carried before; then they are balanced, since
    # a first digit of -1 before others near the base would cancel
    for carried in (torch.floor, torch.round):
        for place in range(_DIGITS - 1, 0, -1):
            carry = carried(digits[place] / _BASE)
            digits[place] -= carry * _BASE
            digits[place - 1] += carry
    total: Tensor = digits[-1]
    for digit in reversed(digits[:-1]):
        total = digit + total / _BASE
    return total


def _first_of(value: Tensor, weight: float) -> int:
    """Return the position of the first digit, so that the largest term has at most 31 bits there.

    Example:
        >>> [_first_of(torch.tensor([value]), 1.0) for value in (1.0, 2.0**31, 1e-20, 0.0)]
        [0, 1, -3, -30]
    """
    # rounding keeps the order, so the largest value's term is the largest
    largest = float(value.abs().max()) * abs(weight) if value.numel() else 0.0
    if not math.isfinite(largest):
        terms = (value.to(torch.float64) * weight).abs()
        largest = float(terms.nan_to_num(0.0, 0.0, 0.0).max())
    if largest == 0:
        return _LOWEST
    return max(math.ceil((math.frexp(largest)[1] - (_DIGIT - 1)) / _DIGIT), _LOWEST)
