"""A model's body and head: two sets of state-dict keys that together are all of it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from fedlightning.errors import ConfigError, did_you_mean

__all__ = ["Part", "Parts", "State", "copy_into", "first_non_finite", "live_state", "split_parts"]

Part = Literal["full", "body", "head"]
State = dict[str, Tensor]


@dataclass(frozen=True)
class Parts:
    """The state-dict keys of a model's body and head: disjoint, complete, neither of them empty.

    Args:
        body: Keys of the body, in the order of the state dict.
        head: Keys of the head, in the order of the state dict.

    Example:
        >>> parts = Parts(body=("body.weight", "body.bias"), head=("head.weight",))
        >>> parts.keys("head")
        ('head.weight',)
        >>> parts.keys("full")
        ('body.weight', 'body.bias', 'head.weight')
    """

    body: tuple[str, ...]
    head: tuple[str, ...]

    def keys(self, part: Part) -> tuple[str, ...]:
        """Return the keys of a part."""
        return {"full": self.body + self.head, "body": self.body, "head": self.head}[part]


def split_parts(module: nn.Module, head: str | Sequence[str]) -> Parts:
    """Split a module's state-dict keys into body and head.

    Args:
        module: The model.
        head: One or several key prefixes that name the head, such as ``"head"`` or ``"net.fc"``. A
            prefix is a whole name: ``"fc"`` is not a prefix of ``"fc2.weight"``.

    Raises:
        ConfigError: If a prefix matches nothing, if the head has no parameters, if nothing is left
            for the body, if parameters are not initialised yet, or if body and head share a tensor.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> split_parts(net, head="2").head
        ('2.weight', '2.bias')
    """
    name = type(module).__name__
    prefixes = (head,) if isinstance(head, str) else tuple(head)
    if not prefixes:
        raise ConfigError(f"head=[] names no head of {name}; give at least one key prefix.")
    _refuse_lazy(module)
    state = live_state(module)
    for prefix in prefixes:
        _refuse_unknown(module, state, prefix)
    head_keys = tuple(key for key in state if _has_prefix(key, prefixes))
    body_keys = tuple(key for key in state if not _has_prefix(key, prefixes))
    if not body_keys:
        raise ConfigError(
            f"head={_shown(head)} covers all of {name}: no body is left to train together. "
            "Name only the last layer or layers."
        )
    _refuse_tied(state, body_keys, head_keys, name)
    return Parts(body=body_keys, head=head_keys)


def live_state(module: nn.Module) -> State:
    """Return the module's state dict: detached tensors that share memory with the module."""
    return {k: value for k, value in module.state_dict().items() if isinstance(value, Tensor)}


@torch.no_grad()
def copy_into(target: Mapping[str, Tensor], source: Mapping[str, Tensor]) -> None:
    """Copy ``source`` into ``target`` in place; keys only in ``target`` stay as they are.

    Args:
        target: Tensors to overwrite, e.g. :func:`live_state` of a module.
        source: Tensors of the same shapes.
    """
    keys = list(source)
    if keys:
        torch._foreach_copy_([target[key] for key in keys], [source[key] for key in keys])


@torch.no_grad()
def first_non_finite(state: Mapping[str, Tensor]) -> str | None:
    """Return the first key whose tensor holds a NaN or an infinity, or ``None``.

    Example:
        >>> first_non_finite({"a": torch.ones(2), "b": torch.tensor([0.0, float("nan")])})
        'b'
    """
    floats = {key: value for key, value in state.items() if value.is_floating_point()}
    if not floats:
        return None
    # a finite sum proves that all its terms are: one fast pass, and as a rule the only one
    sums = torch.stack([value.sum().float() for value in floats.values()])
    if math.isfinite(float(sums.sum())):
        return None
    return next((key for key, value in floats.items() if not torch.isfinite(value).all()), None)


def first_without_norm(state: Mapping[str, Tensor]) -> str | None:
    """Return the first key whose tensor has no finite norm, or ``None``.

    It holds a NaN, an infinity, or numbers whose squares overflow, which no model has any use for.

    Example:
        >>> first_without_norm({"a": torch.ones(2), "b": torch.tensor([0.0, 1e30])})
        'b'
    """
    norms = {
        key: torch.linalg.vector_norm(value, dtype=torch.promote_types(value.dtype, torch.float32))
        for key, value in state.items()
        if value.is_floating_point()
    }
    if not norms or math.isfinite(float(torch.stack([n.float() for n in norms.values()]).sum())):
        return None
    return next((key for key, norm in norms.items() if not norm.isfinite()), None)


def _has_prefix(key: str, prefixes: Iterable[str]) -> bool:
    return any(key == prefix or key.startswith(f"{prefix}.") for prefix in prefixes)


def _shown(head: str | Sequence[str]) -> str:
    return repr(head) if isinstance(head, str) else repr(list(head))


def _refuse_unknown(module: nn.Module, state: State, prefix: str) -> None:
    parameters = [key for key, _ in module.named_parameters() if _has_prefix(key, [prefix])]
    if parameters:
        return
    name = type(module).__name__
    if any(prefix == path for path, _ in module.named_modules()) or any(
        _has_prefix(key, [prefix]) for key in state
    ):
        raise ConfigError(
            f"head={prefix!r} of {name} has no parameters; name a layer that has a weight."
        )
    candidates = [
        path
        for path, child in module.named_modules()
        if path and any(True for _ in child.parameters(recurse=False))
    ]
    children = [
        path for path, child in module.named_children() if any(True for _ in child.parameters())
    ]
    raise ConfigError(
        f"head={prefix!r} matches no parameter of {name} (modules: {', '.join(children)})."
        + did_you_mean(prefix, [*children, *candidates])
    )


def _refuse_lazy(module: nn.Module) -> None:
    for key, parameter in module.named_parameters():
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise ConfigError(
                f"{key} of {type(module).__name__} is a lazy parameter without a shape; "
                "give the layer its sizes, or run one batch through it before fit."
            )


def _refuse_tied(state: State, body: Sequence[str], head: Sequence[str], name: str) -> None:
    owners = {pointer: key for key in body if (pointer := state[key].data_ptr())}
    for key in head:
        if (twin := owners.get(state[key].data_ptr())) is not None:
            raise ConfigError(
                f"{twin} (body) and {key} (head) of {name} are one tied tensor: the head cannot "
                "stay still while the body moves. Untie them, or put both in one part."
            )
