"""``python -m fedlightning report``: what a set of run folders says, in one HTML file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

__all__ = ["report", "write_report"]


def report(words: Sequence[str]) -> int:
    """Write a report on run folders."""
    return 0


def write_report(
    folders: Sequence[Path],
    output: Path,
    title: str = "",
    baseline: str | None = None,
    order: Sequence[str] = (),
) -> None:
    """Write the report."""
