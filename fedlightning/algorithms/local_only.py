"""Local-only: no federation, the baseline."""

from __future__ import annotations

from typing import Any

from fedlightning.algorithms.algorithm import Algorithm

__all__ = ["LocalOnly"]


class LocalOnly(Algorithm):
    """No federation: every client trains its own model whenever it is chosen, and shares nothing.

    The baseline that collaboration has to beat. A client that was never chosen has the initial
    model.

    Args:
        **choices: Those of :class:`Algorithm`.
    """

    def __init__(self, **choices: Any) -> None:
        super().__init__(train="full", share="none", keep=True, **choices)
