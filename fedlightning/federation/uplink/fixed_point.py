"""What an update weighs on the wire under secure aggregation."""

from __future__ import annotations

from dataclasses import replace

from fedlightning.core.messages import ClientUpdate, num_bytes
from fedlightning.core.state import as_real
from fedlightning.federation.uplink.stage import UplinkContext, UplinkStage

__all__ = ["FixedPoint"]


class FixedPoint(UplinkStage):
    """Count an update's numbers as integers of a fixed size; ``SecureSum`` adds it.

    The server rounds where it adds up, which gives the same sum, so the numbers stay as they are.

    Args:
        bits: The size of each number.

    Example:
        >>> FixedPoint(bits=32)
        FixedPoint(bits=32)
    """

    def __init__(self, bits: int) -> None:
        self.bits = bits

    def send(self, update: ClientUpdate, context: UplinkContext) -> ClientUpdate:
        """Return the update with the bytes that it takes."""
        size = 0
        for state in (update.state, update.extras):
            numbers = as_real(state)
            size += sum(value.numel() for value in numbers.values()) * self.bits // 8
            size += num_bytes({key: v for key, v in state.items() if key not in numbers})
        return replace(update, bytes_up=size)
