"""What the runs of a report promise about privacy: read from their ``privacy.json``."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

from fedlightning.storage.run_layout import PRIVACY
from fedlightning.studies.report.html import DASH, paragraph, table
from fedlightning.studies.run_reader import Run

__all__ = ["is_private", "privacy_parts"]


def is_private(runs: Sequence[Run]) -> bool:
    """Whether any of the runs has a ledger."""
    return any((run.folder / PRIVACY).is_file() for run in runs)


def privacy_parts(runs: Sequence[Run]) -> Iterator[str]:
    """Yield the table of epsilons, and what none of them covers."""
    facts = [(run, _facts(run)) for run in runs]
    rows = [[_name(run), *_cells(known)] for run, known in facts]
    header = ["run", "epsilon", "delta", "neighbours", "cohorts", "rounds\nreleased", "noise"]
    yield table(header, rows, wide=(3, 4))
    remarks = sorted({str(known["remarks"]) for _, known in facts if known})
    for remark in remarks:
        yield paragraph(f"Of runs with an epsilon, {remark}.")
    yield paragraph(
        "Epsilons add up over runs on the same data, and cannot be compared between different "
        "neighbours.",
        note=True,
    )


def _facts(run: Run) -> dict[str, Any]:
    try:
        known = json.loads((run.folder / PRIVACY).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) and "remarks" in known else {}


def _cells(known: dict[str, Any]) -> list[str]:
    if not known:
        return ["none promised", *[DASH] * 5]
    epsilon = known.get("epsilon")
    shown = math.inf if epsilon is None else float(epsilon)
    texts = [
        "none (no noise)" if math.isinf(shown) else f"{shown:.4g}",
        f"{known['delta']:g}",
        str(known["relation"]),
        str(known["cohorts"]),
        str(known["rounds"]),
        "simulated" if known["simulated"] else "from the system",
    ]
    return [html.escape(text) for text in texts]


def _name(run: Run) -> str:
    parts = [run.variant or run.algorithm, run.condition, f"seed {run.seed}"]
    return html.escape(", ".join(filter(None, parts)))
