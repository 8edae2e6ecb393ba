"""What each published method is said to do, as an experiment: one module per system.

A module is found by its name, which is the name on the command line. It has

- ``measure(seed) -> dict[str, float]``: what one run gives, by the name of the method; the system
  itself is called ``ours``, all others are baselines or controls;
- ``demands(measured) -> list[Demand]``: what must hold for the list of what ``measure`` gave.

Modules whose names begin with an underscore are helpers and not listed.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

__all__ = ["Demand", "load", "report", "systems"]


@dataclass(frozen=True)
class Demand:
    """One thing that must hold.

    Args:
        name: What is compared, in words.
        effect: What was measured.
        threshold: The least effect that counts.
    """

    name: str
    effect: float
    threshold: float

    @property
    def holds(self) -> bool:
        """Whether the effect is large enough."""
        return self.effect >= self.threshold


def systems() -> list[str]:
    """Return the names of all systems that have an experiment."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def load(system: str) -> ModuleType:
    """Return a system's experiment."""
    return importlib.import_module(f"{__name__}.{system}")


def report(
    system: str,
    seeds: Sequence[int],
    measured: Sequence[dict[str, float]],
    demands: Sequence[Demand],
) -> dict[str, Any]:
    """Return the result as one JSON object; effect and threshold are those of the first demand.

    Example:
        >>> line = report("x", [0], [{"ours": 0.9, "fedavg": 0.7}], [Demand("gain", 0.2, 0.1)])
        >>> line["ours"], line["baselines"], line["holds"]
        ([0.9], {'fedavg': [0.7]}, True)
    """
    columns: dict[str, list[float]] = {}
    for one in measured:
        for name, value in one.items():
            columns.setdefault(name, []).append(round(value, 6))
    return {
        "system": system,
        "seeds": list(seeds),
        "ours": columns.pop("ours"),
        "baselines": columns,
        "effect": round(demands[0].effect, 6),
        "threshold": demands[0].threshold,
        "holds": all(demand.holds for demand in demands),
        "demands": [
            {
                "name": demand.name,
                "effect": round(demand.effect, 6),
                "threshold": demand.threshold,
                "holds": demand.holds,
            }
            for demand in demands
        ],
    }
