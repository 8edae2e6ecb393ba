"""A model's body and head: two sets of state-dict keys that together are all of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import pytorch_lightning as pl
from torch import Tensor, nn

from fedlightning.core.state import State, live_state
from fedlightning.errors import ConfigError, did_you_mean

__all__ = [
    "ModelKeys",
    "Part",
    "Parts",
    "Roles",
    "Shared",
    "head_module",
    "norm_keys",
    "split_parts",
]

Part = Literal["full", "body", "head"]


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


Shared = Literal["full", "body", "head", "none"]


@dataclass(frozen=True)
class ModelKeys:
    """A model's keys, as far as algorithms tell them apart.

    Args:
        parts: Body and head; of a model without a head all of it is body.
        norms: Keys of its BatchNorm layers, statistics included.
    """

    parts: Parts
    norms: tuple[str, ...] = ()


@dataclass(frozen=True)
class Roles:
    """What becomes of a model's keys; a key may have several of these roles, or none.

    Args:
        trained: Keys that may move in a client's turn.
        shared: Keys that a client sends and the server merges.
        kept: Keys that stay with a client from round to round.
    """

    trained: tuple[str, ...]
    shared: tuple[str, ...]
    kept: tuple[str, ...]

    @classmethod
    def of(
        cls, keys: ModelKeys, train: Part, share: Shared, keep: bool, own_norms: bool = False
    ) -> Roles:
        """Return the roles that follow from an algorithm's choices.

        Example:
            >>> keys = ModelKeys(Parts(body=("conv.weight", "bn.weight"), head=("head.weight",)),
            ...                  norms=("bn.weight",))
            >>> Roles.of(keys, "full", "body", keep=True).kept
            ('head.weight',)
            >>> Roles.of(keys, "body", "body", keep=True).kept
            ()
            >>> Roles.of(keys, "full", "full", keep=True, own_norms=True).kept
            ('bn.weight',)
        """
        private = set(keys.norms) if own_norms else set()
        trained = keys.parts.keys(train)
        candidates = keys.parts.keys(share) if share != "none" else ()
        shared = tuple(key for key in candidates if key not in private)
        sent = set(shared)
        kept = tuple(key for key in trained if key not in sent) if keep else ()
        return cls(trained, shared, kept)

    def kept_of(self, kept: Mapping[str, Tensor]) -> State:
        """Return the parts of the model among all that a client has kept."""
        return {key: kept[key] for key in self.kept if key in kept}


def norm_keys(module: nn.Module) -> tuple[str, ...]:
    """Return the state-dict keys of a model's BatchNorm layers.

    Example:
        >>> norm_keys(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, track_running_stats=False)))
        ('1.weight', '1.bias')
    """
    layers = {
        f"{path}." if path else ""
        for path, child in module.named_modules()
        if isinstance(child, nn.modules.batchnorm._BatchNorm)
    }
    return tuple(key for key in module.state_dict() if _layer(key) in layers)


def _layer(key: str) -> str:
    return key[: key.rfind(".") + 1]


def head_module(module: pl.LightningModule, parts: Parts) -> nn.Module | None:
    """Return the submodule that is the head, or ``None`` if the head is no single submodule."""
    head = set(parts.head)
    for path, child in module.named_modules():
        if path and {f"{path}.{key}" for key in child.state_dict()} == head:
            return cast(nn.Module, child)
    return None
