"""Parameters that the user has frozen: not sent and not merged while no client changes them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

__all__ = ["FrozenChanged", "FrozenParameters"]


class FrozenChanged(Exception):
    """A client has changed frozen parameters, so the round must be run again with them shared.

    They are shared from then on, so this happens once in a run, as a rule for its first client. To
    callbacks the clients of that round start twice.

    Args:
        keys: The keys of the parameters.
    """

    def __init__(self, keys: Iterable[str]) -> None:
        self.keys = frozenset(keys)
        super().__init__(f"{', '.join(sorted(self.keys))} changed although frozen")


class FrozenParameters:
    """The shared parameters that clients receive, but have no reason to send back.

    A parameter that does not require a gradient stays as it is, unless the module changes it by
    itself (an average of other weights, a codebook) or a callback or hook lets it train after all.
    All of that is noticed: at the start of a round, or by comparing what a client has trained.

    Args:
        module: The module, before the algorithm freezes anything in it.
        shared: The keys that the algorithm shares.
    """

    def __init__(self, module: nn.Module, shared: Iterable[str]) -> None:
        self._shared = tuple(shared)
        keys = frozenset(self._shared)
        self._parameters = {
            key: parameter
            for key, parameter in module.named_parameters(remove_duplicate=False)
            if key in keys and not parameter.requires_grad
        }

    @property
    def keys(self) -> frozenset[str]:
        """The keys that are not sent."""
        return frozenset(self._parameters)

    @property
    def shared(self) -> tuple[str, ...]:
        """The other keys that the algorithm shares."""
        return tuple(key for key in self._shared if key not in self._parameters)

    @property
    def size(self) -> int:
        """The number of frozen weights."""
        return sum(parameter.numel() for parameter in set(self._parameters.values()))

    def refresh(self) -> bool:
        """Send, from now on, parameters that require a gradient by now; return whether any does."""
        return self.send(key for key, p in self._parameters.items() if p.requires_grad)

    def send(self, keys: Iterable[str]) -> bool:
        """Send some of the parameters from now on; return whether any of them was not sent."""
        found = self.keys.intersection(keys)
        for key in found:
            del self._parameters[key]
        return bool(found)

    def changed(self, now: Mapping[str, Tensor], received: Mapping[str, Tensor]) -> frozenset[str]:
        """Return the keys of those that a client has changed.

        Args:
            now: The state that the client has trained.
            received: The state from which it started, what it had kept left out.
        """
        return frozenset(k for k in self._parameters if not torch.equal(now[k], received[k]))
