"""Reading the tables of inputs and messages beside this file."""

from __future__ import annotations

from pathlib import Path


def table(name: str) -> list[tuple[str, str]]:
    r"""Return the rows of a file: an input on one line, its message indented on the next.

    ``\n`` in an input stands for a line's end; lines that begin with ``#`` are remarks.
    """
    lines = (Path(__file__).parent / name).read_text(encoding="utf-8").splitlines()
    rows: list[tuple[str, str]] = []
    given = ""
    for line in lines:
        if line.startswith("    "):
            rows.append((given, line.strip()))
        elif line and not line.startswith("# "):
            given = line.replace("\\n", "\n")
    return rows
