"""`ClientUpdate`: what comes back from one client."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

__all__ = ["ClientUpdate", "num_bytes"]


@dataclass(frozen=True)
class ClientUpdate:
    """What comes back from one client.

    Args:
        client: Client id.
        state: The shared part after local training. It is a view of the resident model and is
            overwritten when the next client starts: clone what must live longer.
        num_examples: Number of the client's training examples.
        steps: Optimizer steps taken.
        metrics: Example-weighted means of what the client logged.
        extras: What local methods send along, as it is: by name and model key
            (``scaffold/body.0.weight``).
        received: The shared part of the global model that the client started from, where updates
            are merged; not to be changed.
        bytes_up: Bytes that the client sends, as encoded.
        bytes_down: Bytes that it got from the server.
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
