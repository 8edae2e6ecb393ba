"""State dicts: views of a model, copies, dtypes of sums, checks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

__all__ = [
    "State",
    "Sums",
    "as_complex",
    "as_real",
    "copy_into",
    "first_non_finite",
    "live_state",
    "sum_dtype",
    "under",
    "widest_float",
]


Sums = Literal["float64", "float32", "exact"]
"""Precision in which a server sums; ``exact`` depends on neither order nor grouping."""


def sum_dtype(device: torch.device, sums: Sums) -> torch.dtype:
    """Return the dtype in which means are computed on a device."""
    return torch.float32 if sums == "float32" else widest_float(device)


def widest_float(device: torch.device) -> torch.dtype:
    """Return float64, or float32 on Apple's GPUs, which lack float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def under(values: Mapping[str, Tensor], name: str) -> State:
    """Return the tensors stored or sent under a name, by model key.

    Example:
        >>> import torch
        >>> under({"ditto/w": torch.ones(1), "w": torch.zeros(1)}, "ditto")
        {'w': tensor([1.])}
    """
    start = f"{name}/"
    return {k.removeprefix(start): v for k, v in values.items() if k.startswith(start)}


State = dict[str, Tensor]


def live_state(module: nn.Module) -> State:
    """Return the module's state dict: detached tensors that share memory with the module."""
    return {k: value for k, value in module.state_dict().items() if isinstance(value, Tensor)}


@torch.no_grad()
def copy_into(target: Mapping[str, Tensor], source: Mapping[str, Tensor]) -> None:
    """Copy ``source`` into ``target`` in place; keys only in ``target`` are unchanged.

    Args:
        target: Tensors to overwrite, e.g. :func:`live_state` of a module.
        source: Tensors of the same shapes.
    """
    keys = list(source)
    if keys:
        torch._foreach_copy_([target[key] for key in keys], [source[key] for key in keys])


def as_real(state: Mapping[str, Tensor]) -> State:
    """Return the dense floating-point tensors; of complex ones a real view, shape (..., 2).

    Integers, flags and sparse tensors have no mean and are left out.

    Example:
        >>> shapes = as_real({"w": torch.zeros(3, dtype=torch.cfloat), "n": torch.tensor(1)})
        >>> {key: tuple(value.shape) for key, value in shapes.items()}
        {'w': (3, 2)}
    """
    return {
        key: torch.view_as_real(value.resolve_conj()) if value.is_complex() else value
        for key, value in state.items()
        if value.layout is torch.strided and (value.is_floating_point() or value.is_complex())
    }


def as_complex(state: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> State:
    """Undo :func:`as_real`.

    Args:
        state: Tensors by key.
        like: Tensors that are complex where these are meant to be.

    Example:
        >>> weight = {"w": torch.tensor([1 + 2j])}
        >>> as_complex(as_real(weight), weight)
        {'w': tensor([1.+2.j])}
    """
    return {
        key: torch.view_as_complex(value.contiguous())
        if key in like and like[key].is_complex() and not value.is_complex()
        else value
        for key, value in state.items()
    }


@torch.no_grad()
def first_non_finite(state: Mapping[str, Tensor]) -> str | None:
    """Return the first key whose tensor holds a NaN or an infinity, or ``None``.

    Example:
        >>> first_non_finite({"a": torch.ones(2), "b": torch.tensor([0.0, float("nan")])})
        'b'
    """
    floats = as_real(state)
    if not floats:
        return None
    # a finite sum proves that all its terms are finite: one fast pass, usually the only one
    sums = torch.stack([value.sum().float() for value in floats.values()])
    if math.isfinite(float(sums.sum())):
        return None
    return next((key for key, value in floats.items() if not torch.isfinite(value).all()), None)


def first_without_norm(state: Mapping[str, Tensor]) -> str | None:
    """Return the first key whose tensor has no finite norm, or ``None``.

    It holds a NaN, an infinity, or numbers whose squares overflow, which is useless in any model.

    Example:
        >>> first_without_norm({"a": torch.ones(2), "b": torch.tensor([0.0, 1e30])})
        'b'
    """
    norms = {
        key: torch.linalg.vector_norm(value, dtype=torch.promote_types(value.dtype, torch.float32))
        for key, value in as_real(state).items()
    }
    if not norms or math.isfinite(float(torch.stack([n.float() for n in norms.values()]).sum())):
        return None
    return next((key for key, norm in norms.items() if not norm.isfinite()), None)
