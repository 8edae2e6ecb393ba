"""Notebooks: scripts in the percent format, as pages and as .ipynb files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import jupytext

__all__ = ["notebook_pages"]


def notebook_pages(folder: Path) -> Iterator[tuple[str, str, str, str]]:
    """Yield path, title, Markdown and the .ipynb file of each notebook.

    Args:
        folder: The folder of the scripts.
    """
    for path in sorted(folder.glob("*.py")):
        notebook = jupytext.read(path, fmt="py:percent")
        parts = []
        for cell in notebook.cells:
            source = cell.source.strip()
            if cell.cell_type == "markdown":
                parts += [source, ""]
            elif source:
                parts += ["```python", source, "```", ""]
        title = next(line[2:] for line in "\n".join(parts).splitlines() if line.startswith("# "))
        parts.append(f"[This page as a notebook]({path.stem}.ipynb){{ download }}")
        yield (
            f"notebooks/{path.stem}.md",
            title,
            "\n".join(parts) + "\n",
            jupytext.writes(notebook, fmt="ipynb"),
        )
