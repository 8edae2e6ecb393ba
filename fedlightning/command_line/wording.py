"""Types and values in words."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from typing import Any

__all__ = ["any_of", "literal", "shown"]

_TYPES = {
    "int": "an integer",
    "float": "a number",
    "bool": "true or false",
    "str": "a text",
    "NoneType": "null",
    "list": "a list",
    "Sequence": "a list",
    "Iterable": "a list",
    "dict": "a mapping",
}


def any_of(types: Sequence[str]) -> str:
    """Return what jsonargparse calls the types of a setting in words.

    Example:
        >>> any_of(["<class 'int'>", "<class 'NoneType'>"])
        'an integer or null'
        >>> any_of(["typing.Literal['full', 'body']"])
        'one of full, body'
    """
    words: list[str] = []
    choices: list[str] = []
    for name in dict.fromkeys(types):
        if found := re.match(r"typing\.Literal\[(.*)\]", name):
            choices += [str(choice) for choice in literal(f"[{found[1]}]") or []]
            continue
        short = name.partition("'")[2].rpartition("'")[0].rpartition(".")[2] or name
        words.append("a class" if "dot import" in name else _TYPES.get(short, short))
    if choices:
        others = (word for word in words if word != "an integer")
        words = [f"one of {', '.join(dict.fromkeys(choices))}", *others]
    if "a number" in words:
        words = [word for word in words if word != "an integer"]
    rare = ("true or false", "null")
    return " or ".join(sorted(dict.fromkeys(words), key=lambda word: word in rare))


def literal(text: str) -> Any:
    """Return the Python value that a text spells, ``None`` if it spells none."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return None


def shown(value: str | None) -> str:
    """Return a value as messages show it: not too long, numbers without quotes."""
    if value is None:
        return "null"
    text = value if len(value) <= 80 else f"{value[:77]}..."
    return text if re.fullmatch(r"[-+.\deE]+|\{.*|\[.*|Namespace.*", text) else repr(text)
