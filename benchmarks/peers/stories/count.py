"""Count the lines of each task, and make the table of ``docs/peers.md``.

Lines with code, as a formatter of width 100 leaves them; comments, docstrings and blank lines do
not count. Names are all that is imported from the library itself: what has to be known. New are the
lines that the first task does not have.
"""

from __future__ import annotations

import ast
import io
import tokenize
from pathlib import Path

HERE = Path(__file__).parent
LIBRARIES = {"ours": "fedlightning", "flower": "flwr", "fluke": "fluke"}
STORIES = {"hospitals": "hospitals in a table", "personal": "heads stay with the hospitals",
           "resume": "a killed run goes on"}  # fmt: skip


def code_lines(text: str) -> int:
    """Return the number of lines with code."""
    tree = ast.parse(text)
    skipped: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(
            node
        ):
            first = node.body[0]
            skipped |= set(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    quiet = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT,
             tokenize.ENDMARKER}  # fmt: skip
    found: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in quiet:
            found |= set(range(token.start[0], token.end[0] + 1))
    return len(found - skipped)


def library_names(text: str, library: str) -> int:
    """Return how many names are imported from a library."""
    imports = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom)]
    return sum(len(node.names) for node in imports if (node.module or "").split(".")[0] == library)


def changed_lines(text: str, base: str) -> int:
    """Return how many lines of code are not among those of the first task."""
    import difflib

    before, after = (
        [line for line in whole.splitlines() if line.strip()] for whole in (base, text)
    )
    return sum(line.startswith("+ ") for line in difflib.ndiff(before, after)) - 1  # the title


def main() -> None:
    """Print the table."""
    print("| task | " + " | ".join(LIBRARIES.values()) + " |")
    print("|---|" + "---|" * len(LIBRARIES))
    for story, title in STORIES.items():
        cells = []
        for short, library in LIBRARIES.items():
            text = (HERE / f"{short}_{story}.py").read_text("utf-8")
            cell = f"{code_lines(text)} lines, {library_names(text, library)} names"
            if story != "hospitals":
                base = (HERE / f"{short}_hospitals.py").read_text("utf-8")
                cell += f", {changed_lines(text, base)} new"
            cells.append(cell)
        print(f"| {title} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
