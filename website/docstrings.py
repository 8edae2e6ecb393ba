"""Docstrings as Markdown: formulas become MathML, which browsers draw without any script."""

from __future__ import annotations

import re

from latex2mathml.converter import convert

__all__ = ["formula", "markdown_of", "sections"]

_SECTION = re.compile(r"^(Args|Attributes|Example|Raises|Returns|Source|Yields):$", re.MULTILINE)
_BLOCK = re.compile(r"^\.\. math:: ?(.*(?:\n(?:[ ]+.*)?)*?)(?=\n\n|\n?\Z)", re.MULTILINE)
_OPERATORS = {r"\operatorname": r"\mathrm", r"\Big": "", r"\|": r"\Vert "}


def formula(tex: str, block: bool = False) -> str:
    r"""Return LaTeX as MathML.

    Example:
        >>> formula("x^2").startswith("<span><math")
        True
    """
    for ours, known in _OPERATORS.items():
        tex = tex.replace(ours, known)
    words = " ".join(tex.split())
    drawn = convert(words, display="block" if block else "inline")
    # a line that begins with <math> would be a paragraph of its own
    return f'<div class="formula">{drawn}</div>' if block else f"<span>{drawn}</span>"


def sections(docstring: str) -> dict[str, str]:
    r"""Return the parts of a Google docstring; the text before the first section has no name.

    Example:
        >>> sections("One line.\n\nSource:\n    A paper.")
        {'': 'One line.', 'Source': 'A paper.'}
    """
    pieces = _SECTION.split(docstring)
    found = {"": pieces[0].strip()}
    for name, body in zip(pieces[1::2], pieces[2::2], strict=True):
        lines = body.strip("\n").splitlines()
        found[name] = "\n".join(line[4:] for line in lines).strip()
    return found


def markdown_of(text: str) -> str:
    """Return the reStructuredText of a docstring as Markdown."""
    text = _BLOCK.sub(lambda match: f"\n{formula(match[1], block=True)}\n", text)
    text = re.sub(r":math:`([^`]*)`", lambda match: formula(match[1]), text)
    text = re.sub(r":[a-z]+:`~?([^`]*)`", lambda match: f"`{_short(match[1])}`", text)
    text = re.sub(r"(?<![<(\"'`])https://[^\s)>,;`]*[^\s)>,;`.]", r"<\g<0>>", text)
    return text.replace("``", "`")


def _short(target: str) -> str:
    return target.rpartition(".")[2].strip()
