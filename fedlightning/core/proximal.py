"""The proximal point of a loss: near to given weights, and of low loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from fedlightning.core.state import State

__all__ = ["proximal_point"]

_FIRST = 1e-2  # of 1 / strength: short, since the loss's own curvature is not known yet


@torch.no_grad()
def proximal_point(
    gradient: Callable[[Mapping[str, Tensor]], State],
    start: Mapping[str, Tensor],
    strength: float,
    tolerance: float,
    max_steps: int,
) -> State:
    r"""Return :math:`\arg\min_\theta f(\theta) + \frac{\lambda}{2} \|\theta - w\|^2`, nearly.

    Steps of gradient descent from w, whose length is that of Barzilai and Borwein, until the norm
    of the gradient, the second term's included, is at most the tolerance. Where it never is, the
    point at which it was least is returned.

    Args:
        gradient: Returns :math:`\nabla f` at some weights, by key.
        start: w, by key.
        strength: :math:`\lambda`, above 0.
        tolerance: The norm at which it ends.
        max_steps: The most steps.

    Source:
        Barzilai, Borwein. Two-Point Step Size Gradient Methods. IMA Journal of Numerical Analysis,
        1988.

    Example:
        For :math:`f = (\theta - 1)^2` and w = 3 it is (2 + 15 * 3) / (2 + 15):

        >>> w = {"w": torch.tensor([3.0], dtype=torch.float64)}
        >>> found = proximal_point(lambda t: {"w": 2 * (t["w"] - 1)}, w, 15.0, 1e-9, max_steps=20)
        >>> round(float(found["w"]), 6)
        2.764706
    """
    best = point = {key: value.clone() for key, value in start.items()}
    least, step = math.inf, _FIRST / strength
    slope: State = {}
    moved: State = {}
    for _ in range(max_steps + 1):
        before, found = slope, gradient(point)
        slope = {key: found[key] + strength * (point[key] - start[key]) for key in start}
        norm = math.sqrt(_inner(slope, slope))
        if norm < least:
            best, least = point, norm
        if norm <= tolerance:
            break
        if moved:
            bend = _inner(moved, {key: slope[key] - before[key] for key in slope})
            step = _inner(moved, moved) / bend if bend > 0 else _FIRST / strength
        moved = {key: -step * value for key, value in slope.items()}
        point = {key: point[key] + moved[key] for key in point}
    return best


def _inner(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    return sum(
        float(torch.dot(value.flatten(), other[key].flatten())) for key, value in one.items()
    )
