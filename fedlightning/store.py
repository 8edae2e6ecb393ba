"""What clients keep from round to round."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from fedlightning.parts import State

__all__ = ["PersonalStates"]


class PersonalStates:
    """Personal states in memory: only clients that were chosen have one.

    Example:
        >>> states = PersonalStates()
        >>> states.update({3: {"head.weight": torch.ones(2)}})
        >>> states.get(3)["head.weight"], states.get(4) is None, len(states)
        (tensor([1., 1.]), True, 1)
    """

    def __init__(self) -> None:
        self._states: dict[int, State] = {}

    def __len__(self) -> int:
        return len(self._states)

    def __iter__(self) -> Iterator[int]:
        return iter(self._states)

    def get(self, client: int) -> State | None:
        """Return what a client has kept, or ``None`` if it never trained."""
        return self._states.get(client)

    def update(self, states: Mapping[int, State]) -> None:
        """Keep the states of some clients; the tensors are not copied."""
        self._states.update(states)

    def state_dict(self) -> dict[str, Any]:
        """Return all states, stacked: one tensor per key saves and loads far faster."""
        clients = sorted(self._states)
        keys = list(self._states[clients[0]]) if clients else []
        return {
            "clients": clients,
            "tensors": {key: torch.stack([self._states[c][key] for c in clients]) for key in keys},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave."""
        self._states = {
            client: {key: stacked[row].clone() for key, stacked in state["tensors"].items()}
            for row, client in enumerate(state["clients"])
        }
