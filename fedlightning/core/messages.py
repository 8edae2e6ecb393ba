"""What travels between the server and a client, and how it merges.

A round's messages are :class:`Broadcast` (down) and :class:`ClientUpdate` (up). Whatever an
algorithm sends beside the shared part of the model is an *extra*. The hook that owns an extra
declares it once, with :class:`Down` or :class:`Up`; messages hold nothing that is not declared.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from fedlightning.core.validation import Setting
from fedlightning.errors import ConfigError, did_you_mean

__all__ = [
    "Broadcast",
    "ClientUpdate",
    "Down",
    "MergeRule",
    "Up",
    "belongs_to",
    "declared",
    "num_bytes",
]

MergeRule = Literal["mean", "weighted_mean", "sum", "concatenate", "keep"]
"""How the server merges an extra: the plain mean over clients, the mean by the weights of the
model, the sum, all values one after another along the first dimension, or each client's own."""


class Down(Setting):
    """An extra that the server sends to clients.

    Args:
        name: Its name; it covers the tensors ``name`` and ``name/...``.
        per_client: Whether each client gets a value of its own: the server's state then has it
            under ``name/CLIENT`` and ``name/CLIENT/...``, and a client that has none gets nothing.

    Example:
        >>> Down("scaffold")
        Down(name='scaffold', per_client=False)
    """

    def __init__(self, name: str, per_client: bool = False) -> None:
        self.name = _check_name(name)
        self.per_client = per_client


class Up(Setting):
    """An extra that clients send to the server.

    Args:
        name: Its name; it covers the tensors ``name`` and ``name/...``.
        merge: How the server merges it (:data:`MergeRule`). Integers have a ``sum``, can be
            concatenated and kept, and have no mean.

    Raises:
        ConfigError: If the rule is unknown.

    Example:
        >>> Up("class_sums", merge="sum")
        Up(name='class_sums', merge='sum')
    """

    def __init__(self, name: str, merge: MergeRule = "mean") -> None:
        if merge not in get_args(MergeRule):
            raise ConfigError(
                f"Up({name!r}, merge={merge!r}): merge must be one of "
                f"{', '.join(get_args(MergeRule))}.{did_you_mean(str(merge), get_args(MergeRule))}"
            )
        self.name = _check_name(name)
        self.merge: MergeRule = merge


@dataclass(frozen=True)
class Broadcast:
    """What the server sends to a client.

    Args:
        version: The model's version: the number of commits behind it.
        state: The global model; not to be changed.
        extras: The declared extras, by name and key (``scaffold/body.0.weight``).
    """

    version: int
    state: Mapping[str, Tensor]
    extras: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class ClientUpdate:
    """What a client sends to the server.

    Args:
        client: Client id.
        state: The shared part after local training. It is a view of the resident model and is
            overwritten when the next client starts: clone what must live longer.
        num_examples: Number of the client's training examples.
        steps: Optimizer steps taken.
        metrics: Example-weighted means of what the client logged.
        extras: The declared extras, by name and key.
        received: The shared part of the model that the update is a change of, where updates are
            merged; not to be changed.
        bytes_up: Bytes that the client sends, as encoded.
        bytes_down: Bytes that it got from the server.
        version: The version of the model that it started from.
        staleness: Commits between that version and the model that the update is merged into.
        unsent: Keys of parameters that are frozen, and so not shared, and that the client has
            changed all the same.
        payload: Encoded tensors that an uplink stage has put in the place of ``state``.
        elsewhere: Whether its tensors are with another process, which adds them: ``state`` is empty
            and ``extras`` has names alone.
    """

    client: int
    state: Mapping[str, Tensor]
    num_examples: int
    steps: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    received: Mapping[str, Tensor] = field(default_factory=dict)
    bytes_up: int = 0
    bytes_down: int = 0
    version: int = 0
    staleness: int = 0
    unsent: tuple[str, ...] = ()
    payload: Tensor | None = None
    elsewhere: bool = False

    @property
    def outputs(self) -> dict[str, Any]:
        """What ``on_train_batch_end`` gets: loss, client, metrics, bytes up and down."""
        losses = [value for name, value in self.metrics.items() if "loss" in name]
        return {
            "loss": torch.tensor(losses[0] if losses else math.nan),
            "client": self.client,
            "metrics": dict(self.metrics),
            "bytes_up": self.bytes_up,
            "bytes_down": self.bytes_down,
        }


def num_bytes(state: Mapping[str, Tensor]) -> int:
    """Return how many bytes a state's tensors take as they are.

    Example:
        >>> num_bytes({"w": torch.zeros(10, 2), "n": torch.tensor(3)})
        88
    """
    return sum(value.numel() * value.element_size() for value in state.values())


def belongs_to(key: str, name: str) -> bool:
    """Whether a tensor's key is that of an extra.

    Example:
        >>> belongs_to("scaffold/w", "scaffold"), belongs_to("scaffold2/w", "scaffold")
        (True, False)
    """
    return key == name or key.startswith(f"{name}/")


def declared(key: str, extras: Sequence[Up]) -> Up | None:
    """Return the declaration of an extra, by the key of one of its tensors."""
    return next((extra for extra in extras if belongs_to(key, extra.name)), None)


def _check_name(name: str) -> str:
    if not isinstance(name, str) or not name or "/" in name:
        raise ConfigError(f"an extra's name must be a text without '/', got {name!r}.")
    return name
