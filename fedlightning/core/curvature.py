"""Second derivatives of a loss along directions, without the matrix that holds them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fedlightning.core.state import State

__all__ = [
    "Directions",
    "fisher_step",
    "gradients_with_graph",
    "hessian_product",
    "hessian_step",
    "layer_step",
]

_CUT = "torch::autograd::Error"

Directions = Sequence[State]
"""Vectors in parameter space, each as tensors by the keys of parameters."""


def gradients_with_graph(loss: Tensor, parameters: Mapping[str, Tensor]) -> State:
    """Return the gradients of a loss, which can be differentiated again.

    Args:
        loss: A scalar; its graph stays as it is, for the backward pass of training.
        parameters: By key; those that the loss does not depend on, or depends on linearly, are left
            out, because their second derivatives are zero.

    Raises:
        RuntimeError: A function in the graph is marked ``@once_differentiable``; torch would leave
            its share out without a word.
    """
    found = torch.autograd.grad(
        loss, list(parameters.values()), create_graph=True, allow_unused=True
    )
    gradients = {
        key: gradient
        for key, gradient in zip(parameters, found, strict=True)
        if gradient is not None and gradient.requires_grad
    }
    if any(node.name() == _CUT for node in _graph(gradients)):
        raise RuntimeError("a function in it is marked @once_differentiable")
    return gradients


def _graph(tensors: Mapping[str, Tensor]) -> set[Any]:
    """Return the nodes of the graph behind some tensors."""
    seen: set[Any] = set()
    ahead: list[Any] = [tensor.grad_fn for tensor in tensors.values()]
    while ahead:
        node = ahead.pop()
        if node is not None and node not in seen:
            seen.add(node)
            ahead += [following for following, _ in node.next_functions]
    return seen


def hessian_product(
    gradients: Mapping[str, Tensor],
    parameters: Mapping[str, Tensor],
    direction: Mapping[str, Tensor],
) -> State:
    r"""Return :math:`H v` by key, without those parameters for which it is zero.

    Args:
        gradients: What :func:`gradients_with_graph` returns.
        parameters: The parameters at which it is wanted, by key.
        direction: v, by the keys of ``gradients`` at least.

    Example:
        >>> w = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> slope = gradients_with_graph(w[0] ** 2 + 3 * w[0] * w[1], {"w": w})
        >>> hessian_product(slope, {"w": w}, {"w": torch.tensor([1.0, 1.0])})["w"].tolist()
        [5.0, 3.0]
    """
    if not gradients or not parameters:
        return {}
    products = torch.autograd.grad(
        list(gradients.values()),
        list(parameters.values()),
        [direction[key] for key in gradients],
        retain_graph=True,
        allow_unused=True,
    )
    return {
        key: product
        for key, product in zip(parameters, products, strict=True)
        if product is not None
    }


def hessian_step(
    gradients: Mapping[str, Tensor],
    parameters: Mapping[str, Tensor],
    directions: Directions,
    lrs: Mapping[str, float],
) -> None:
    r"""Take directions through a gradient step: :math:`\sigma \leftarrow \sigma - \eta H \sigma`.

    Args:
        gradients: What :func:`gradients_with_graph` returns.
        parameters: The parameters, by key.
        directions: Vectors over all parameters; they are changed in place.
        lrs: The learning rate of each parameter; one that is left out does not move.

    Example:
        >>> w = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> loss = (w[0] ** 2 + 3 * w[0] * w[1])          # H = [[2, 3], [3, 0]]
        >>> sigma = {"w": torch.tensor([1.0, 1.0])}
        >>> hessian_step(gradients_with_graph(loss, {"w": w}), {"w": w}, [sigma], {"w": 0.1})
        >>> sigma["w"].tolist()
        [0.5, 0.699999988079071]
    """
    moving = {key: parameters[key] for key in lrs}
    for direction in directions:
        for key, product in hessian_product(gradients, moving, direction).items():
            direction[key].sub_(product, alpha=lrs[key])


def layer_step(
    gradients: Mapping[str, Tensor],
    parameters: Mapping[str, Tensor],
    directions: Directions,
    lrs: Mapping[str, float],
) -> None:
    """Take directions through a gradient step, as if parameter tensors did not interact.

    The Hessian is taken block-diagonal, a block for each parameter tensor.

    Args:
        gradients: What :func:`gradients_with_graph` returns.
        parameters: The parameters, by key.
        directions: Vectors over some of the parameters each; they are changed in place.
        lrs: The learning rate of each parameter; one that is left out does not move.
    """
    for direction in directions:
        for key, part in direction.items():
            if key not in gradients or key not in lrs:
                continue
            (product,) = torch.autograd.grad(
                gradients[key], parameters[key], part, retain_graph=True, allow_unused=True
            )
            if product is not None:
                part.sub_(product, alpha=lrs[key])


def fisher_step(
    gradients: Mapping[str, Tensor], directions: Directions, lrs: Mapping[str, float]
) -> None:
    r"""Take directions through a step with the Fisher information in place of the Hessian.

    :math:`\sigma \leftarrow \sigma - \eta\, \frac1n \sum_s g_s (g_s \cdot \sigma)` in each
    parameter tensor by itself.

    Args:
        gradients: Gradients of single examples, shape (n, ...), by the key of the parameter.
        directions: Vectors over some of the parameters each; they are changed in place.
        lrs: The learning rate of each parameter; one that is left out does not move.

    Example:
        >>> sigma = {"w": torch.tensor([1.0, 1.0])}
        >>> fisher_step({"w": torch.tensor([[2.0, 0.0], [0.0, 0.0]])}, [sigma], {"w": 0.1})
        >>> sigma["w"].tolist()
        [0.800000011920929, 1.0]
    """
    for direction in directions:
        for key, part in direction.items():
            if key not in gradients or key not in lrs:
                continue
            rows = gradients[key].flatten(1)
            product = rows.T @ (rows @ part.flatten()) / len(rows)
            part.sub_(product.view_as(part), alpha=lrs[key])
