"""A client's update as it arrives: compressed on the way, with what was lost kept for later."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from torch import Tensor

from fedlightning.algorithms import ClientUpdate
from fedlightning.core.state import State
from fedlightning.federation.uplink import Compression, num_bytes

__all__ = ["compressed"]

_NAME = "compression/"


def compressed(
    compression: Compression,
    update: ClientUpdate,
    received: Mapping[str, Tensor],
    parameters: Collection[str],
    kept: Mapping[str, Tensor],
) -> tuple[ClientUpdate, State]:
    """Return an update as the server gets it, and what the client keeps for its next one.

    Args:
        compression: How the update is written.
        update: The update; what local methods send along goes as it is.
        received: The global model as the client received it.
        parameters: Keys of parameters; buffers go as they are.
        kept: What the client has kept, its last residual included.
    """
    exact = [key for key in update.state if key not in parameters]
    delta = {
        key: value - received[key] if key in parameters else value
        for key, value in update.state.items()
    }
    if compression.error_feedback:
        residual = {
            key: kept[_NAME + key].to(value.device)
            for key, value in delta.items()
            if _NAME + key in kept
        }
        arrived, left, size = compression.with_feedback(delta, residual, exact)
    else:
        encoded = compression.compress(delta, exact)
        arrived, left, size = encoded.state, {}, encoded.num_bytes
    state = {
        key: received[key] + value if key in parameters else value for key, value in arrived.items()
    }
    bytes_up = size + num_bytes(update.extras)
    own = {_NAME + key: value for key, value in left.items()}
    return replace(update, state=state, bytes_up=bytes_up), own
