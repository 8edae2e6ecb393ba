"""What was released so far: all that epsilon is computed from, and all that must not be lost."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedlightning.errors import CheckpointError
from fedlightning.storage.files import write_atomically

__all__ = ["Ledger", "Release"]


@dataclass(frozen=True)
class Release:
    """Rounds that were released with the same noise.

    Args:
        multiplier: The noise multiplier z.
        rounds: The number of rounds.
    """

    multiplier: float
    rounds: int


@dataclass(frozen=True)
class Ledger:
    """All rounds that were released, in order.

    Args:
        releases: Stretches of rounds with the same noise.

    Example:
        >>> ledger = Ledger().after_round(1.0).after_round(1.0).after_round(2.0)
        >>> ledger.releases
        (Release(multiplier=1.0, rounds=2), Release(multiplier=2.0, rounds=1))
        >>> Ledger.of_tensor(ledger.tensor()) == ledger
        True
    """

    releases: tuple[Release, ...] = ()

    @property
    def rounds(self) -> int:
        """How many rounds it counts."""
        return sum(release.rounds for release in self.releases)

    def after_round(self, multiplier: float) -> Ledger:
        """Return the ledger with one more round."""
        if self.releases and self.releases[-1].multiplier == multiplier:
            last = self.releases[-1]
            return Ledger((*self.releases[:-1], replace(last, rounds=last.rounds + 1)))
        return Ledger((*self.releases, Release(multiplier, 1)))

    def tensor(self) -> Tensor:
        """Return it as float64 of shape (stretches, 2): multiplier, rounds."""
        rows = [[each.multiplier, float(each.rounds)] for each in self.releases]
        return torch.tensor(rows, dtype=torch.float64).reshape(len(rows), 2)

    @classmethod
    def of_tensor(cls, rows: Tensor) -> Ledger:
        """Return what :meth:`tensor` has written."""
        return cls(tuple(Release(z, round(count)) for z, count in rows.tolist()))

    def write(self, path: Path, **facts: Any) -> None:
        """Write it to a file that is on the disk when this returns.

        Args:
            path: The file.
            **facts: What else to say, as plain values.
        """
        rows = [[each.multiplier, each.rounds] for each in self.releases]
        text = json.dumps({"rounds": self.rounds, "releases": rows, **facts}, indent=1)
        write_atomically(path, text.encode())

    @classmethod
    def read(cls, path: Path) -> Ledger:
        """Return what :meth:`write` has written.

        Raises:
            CheckpointError: If the file is not there, or not such a file.
        """
        try:
            rows = json.loads(path.read_text(encoding="utf-8"))["releases"]
            return cls(tuple(Release(float(z), int(count)) for z, count in rows))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{path}: the ledger of what was released cannot be read "
                f"({type(error).__name__}: {error}); without it nobody knows what the run has "
                "cost. Restore the file, or start anew."
            ) from error
