"""Parse jsonargparse's error messages: an indented tree of attempts.

A value of a union type is tried as each member of it, and the message lists all failures, relevant
or not. :mod:`explain` picks the most specific one.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Complaint", "any_of", "format_value", "literal", "read_complaints"]

_KEY = re.compile(r'Parser key "([^"]+)"(?: element (\d+))?:\s*(.*)')
_OWNER = re.compile(r"Problem with given class_path '([^']+)':")
_VALUE = re.compile(r"Given value: (.*)")
_NESTED = re.compile(r"NestedArg\(key='[^']*', val=(.*)\)")
_NOISE = re.compile(
    r"Does not validate against|Subtypes: |Errors:$|Given value type: |Expected a path but |"
    r"Subclass types expect one of|a class path \(str\)|a dict (with|without) "
)


@dataclass(frozen=True)
class Complaint:
    """One failure.

    Args:
        keys: The setting, from the outermost key to the innermost.
        owner: Import path of the class whose setting ``keys[-1]`` is, or whose settings are wrong.
        owner_key: How many of ``keys`` lead to the owner.
        text: The message of jsonargparse.
        value: The refused value, as text.
    """

    keys: tuple[str, ...]
    owner: str | None
    owner_key: int
    text: str
    value: str | None = None

    @property
    def key(self) -> str:
        """The setting, as users write it."""
        return ".".join(self.keys)


@dataclass(frozen=True)
class _Frame:
    indent: int
    key: str | None = None
    owner: str | None = None


def read_complaints(message: str) -> list[Complaint]:
    """Return the failures that an error message of jsonargparse lists, in its order.

    Example:
        >>> read_complaints('Parser key "seed": Expected an int. Got value: x')
        [Complaint(keys=('seed',), owner=None, owner_key=0, text='Expected an int', value='x')]
    """
    frames: list[_Frame] = []
    complaints: list[tuple[int, Complaint]] = []
    for line in message.splitlines():
        content = line.strip()
        indent = len(line) - len(line.lstrip())
        if content.startswith("- "):
            content, indent = content[2:], indent + 2
        while frames and frames[-1].indent >= indent and content:
            frames.pop()
        if found := _KEY.match(content):
            element = f"[{int(found[2]) - 1}]" if found[2] else ""
            frames.append(_Frame(indent, key=found[1] + element))
            content = found[3]
        elif found := _OWNER.match(content):
            frames.append(_Frame(indent, owner=found[1]))
            continue
        elif found := _VALUE.match(content):
            complaints = [
                (depth, _with_value(complaint, found[1]) if depth >= indent else complaint)
                for depth, complaint in complaints
            ]
            continue
        if content and not _NOISE.match(content):
            complaints.append((indent, _complaint(frames, content)))
    return [complaint for _, complaint in complaints]


def _complaint(frames: list[_Frame], content: str) -> Complaint:
    keys = tuple(frame.key for frame in frames if frame.key is not None)
    owner, owner_key = None, 0
    for number, frame in enumerate(frames):
        if frame.owner is not None:
            owner, owner_key = frame.owner, sum(f.key is not None for f in frames[:number])
    text, got, value = content.partition(". Got value: ")
    return Complaint(keys, owner, owner_key, text, value if got else None)


def _with_value(complaint: Complaint, text: str) -> Complaint:
    if complaint.value is not None:
        return complaint
    nested = _NESTED.fullmatch(text)
    value = nested[1].strip("'\"") if nested else text
    return Complaint(complaint.keys, complaint.owner, complaint.owner_key, complaint.text, value)


_TYPES = {
    "int": "an integer",
    "float": "a number",
    "bool": "true or false",
    "str": "a string",
    "NoneType": "null",
    "list": "a list",
    "Sequence": "a list",
    "Iterable": "a list",
    "dict": "a mapping",
}


def any_of(types: Sequence[str]) -> str:
    """Return the types of a setting, as jsonargparse prints them, in words.

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
    """Return the Python value of a literal, ``None`` if the text is not one."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return None


def format_value(value: str | None) -> str:
    """Format a value for a message: shortened, numbers without quotes."""
    if value is None:
        return "null"
    text = value if len(value) <= 80 else f"{value[:77]}..."
    return text if re.fullmatch(r"[-+.\deE]+|\{.*|\[.*|Namespace.*", text) else repr(text)
