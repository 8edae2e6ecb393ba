"""Pages for notebooks: tables and pictures in HTML that needs nothing else.

All texts are escaped: names of clients and variants come from data.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

__all__ = ["block", "picture", "table"]

_CELL = "padding:.2em .7em;text-align:{};white-space:nowrap"
_LARGEST = 4 << 20


def block(title: str, parts: Iterable[str], note: str = "") -> str:
    """Return a titled block.

    Args:
        title: Text.
        parts: HTML.
        note: Text under the title.

    Example:
        >>> block("<b>", ["<p>1</p>"])
        '<div><p><strong>&lt;b&gt;</strong></p><p>1</p></div>'
    """
    line = f" <span style='opacity:.7'>{html.escape(note)}</span>" if note else ""
    return f"<div><p><strong>{html.escape(title)}</strong>{line}</p>{''.join(parts)}</div>"


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a table of texts; the first column is aligned left, all others are numbers."""
    lines = [_row("th", header)] if header else []
    lines += [_row("td", row) for row in rows]
    return f"<table style='border-collapse:collapse'>{''.join(lines)}</table>"


def picture(path: Path, text: str) -> str:
    """Return a PNG file as part of the page; nothing if it is not there, empty or too large."""
    try:
        content = path.read_bytes() if path.stat().st_size <= _LARGEST else b""
    except OSError:
        return ""
    if not content.startswith(b"\x89PNG"):
        return ""
    data = base64.b64encode(content).decode()
    return (
        f"<img style='max-width:100%;width:46em' alt='{html.escape(text)}' "
        f"src='data:image/png;base64,{data}'>"
    )


def _row(tag: str, cells: Sequence[Any]) -> str:
    sides = ["left", *["right"] * (len(cells) - 1)]
    inner = (
        f"<{tag} style='{_CELL.format(side)}'>{html.escape(str(cell))}</{tag}>"
        for side, cell in zip(sides, cells, strict=True)
    )
    return f"<tr>{''.join(inner)}</tr>"
