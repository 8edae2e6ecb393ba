"""Figures as SVG inside a page: they take the page's colours, light or dark."""

from __future__ import annotations

import gc
import io
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fedlightning.reporting.figures.style import CYCLE, GREY, GRID, INK, MUTED, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Look", "styles_for", "svg"]

_PAGE_COLOURS = {INK: "var(--ink)", MUTED: "var(--muted)", GRID: "var(--grid)"}
_DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (5, 1.5, 1, 1.5)))

Look = tuple[str, object]
"""A colour and a line style."""


def styles_for(variants: Sequence[str]) -> dict[str, Look]:
    """Return the colour and line style of each variant.

    Neighbours differ in both, so that of two curves that coincide the later one, drawn in dashes,
    lets the earlier one through.

    Example:
        >>> styles_for(["FedAvg", "FedBABU"])["FedAvg"]
        ('#0072b2', '-')
    """
    colours = [colour for colour in CYCLE if colour not in (INK, GREY)]
    return {
        name: (colours[at % len(colours)], _DASHES[(at + at // len(colours)) % len(_DASHES)])
        for at, name in enumerate(variants)
    }


def svg(figure: Figure, label: str) -> str:
    """Return a figure as a self-contained ``<svg>`` element.

    Args:
        figure: The figure.
        label: A description, for screen readers.
    """
    import html

    import matplotlib

    drawn = io.StringIO()
    with style(), matplotlib.rc_context({"svg.hashsalt": "fedlightning", "svg.fonttype": "path"}):
        figure.savefig(drawn, format="svg", transparent=True, metadata={"Date": None})
    gc.collect()  # figures are full of reference cycles
    text = drawn.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    width = round(figure.get_figwidth() * 96)
    text = text.replace(
        "<svg", f'<svg role="img" aria-label="{html.escape(label)}" style="max-width:{width}px"', 1
    )
    for ours, pages in _PAGE_COLOURS.items():
        text = text.replace(ours, pages)
    return "\n".join(line.rstrip() for line in text.splitlines() if line.strip())
