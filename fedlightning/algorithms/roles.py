"""Which of a model's keys a client trains, shares and keeps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from fedlightning.core.parts import Part, Parts, State

__all__ = ["ModelKeys", "Roles", "Shared", "norm_keys"]

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
