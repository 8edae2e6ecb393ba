"""A numeric reference: what its JSON says and the tensors beside it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor


@dataclass(frozen=True)
class Reference:
    """One pair of files."""

    name: str
    about: dict[str, Any]
    tensors: dict[str, Tensor]

    @classmethod
    def read(cls, path: Path) -> Reference:
        """Read the JSON and the safetensors file of the same name."""
        about = json.loads(path.read_text())
        return cls(path.stem, about, load_file(path.with_suffix(".safetensors")))

    def __getitem__(self, key: str) -> Tensor:
        return self.tensors[key]

    def under(self, start: str) -> dict[str, Tensor]:
        """Return the tensors whose names begin so, without that beginning."""
        return {k.removeprefix(start): v for k, v in self.tensors.items() if k.startswith(start)}

    def tolerance(self, key: str = "values") -> float:
        """Return a tolerance that the JSON states."""
        return float(self.about["tolerance"][key])


def close(got: Tensor, want: Tensor, tolerance: float, what: str) -> None:
    """Compare with a tolerance that is absolute for numbers up to one, and relative beyond."""
    want = want.to(got.dtype)
    assert got.shape == want.shape, f"{what}: shape {tuple(got.shape)}, not {tuple(want.shape)}"
    worst = float(((got - want).abs() / want.abs().clamp(min=1)).max()) if want.numel() else 0.0
    assert worst <= tolerance, f"{what}: off by {worst:.3g}, allowed {tolerance:.3g}"
    assert torch.isfinite(got).all(), what
