"""Modules that torch compiles."""

from __future__ import annotations

from typing import Any

import torch

from tests.lightning_parity.idioms.base import Net
from tests.lightning_parity.idioms.layers import BatchNorm


class CompiledNetwork(Net):
    """``self.net = torch.compile(self.net)``: its keys have a prefix."""

    def __init__(self) -> None:
        super().__init__()
        self.net = torch.compile(self.net, backend="eager")  # type: ignore[assignment]


class CompiledInPlace(BatchNorm):
    """``self.net.compile()`` in ``configure_model()``."""

    def configure_model(self) -> None:
        self.net.compile(backend="aot_eager")


def compiled_module() -> Any:
    """Return a module compiled as a whole, as Lightning's documentation does."""
    return torch.compile(Net(), backend="eager")
