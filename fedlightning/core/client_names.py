"""The names of clients: what messages call them, and which clients a user means."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from fedlightning.errors import ConfigError, FedLightningError, did_you_mean

__all__ = [
    "NAME_COLUMN",
    "named_in_text",
    "naming_clients",
    "resolve_clients",
    "short_label",
]

NAME_COLUMN = "client_name"
"""The last column of tables of clients that have names."""

_RANGE = re.compile(r"(\d+)(?:-(\d+))?")
_IN_TEXT = re.compile(r"\b([Cc]lient) (\d+)\b(?! \(| clients)")
_MOST = 1_000_000


def short_label(client: int, names: Sequence[str] | None, most: int = 16) -> str:
    """Return what figures call a client: its name, cut to a length, or its id.

    Example:
        >>> short_label(0, ["charite"]), short_label(0, None), short_label(0, ["x" * 20])
        ('charite', '0', 'xxxxxxxxxxxxxxx…')
    """
    if names is None or not 0 <= client < len(names):
        return str(client)
    name = names[client]
    return name if len(name) <= most else f"{name[: most - 1]}…"


def named_in_text(text: str, names: Sequence[str] | None) -> str:
    """Return a message with the name behind every client that it mentions by id.

    Example:
        >>> named_in_text("client 1, sample 7: label 9", ["charite", "mayo"])
        'client 1 (mayo), sample 7: label 9'
    """
    if names is None:
        return text

    def name(found: re.Match[str]) -> str:
        client = int(found[2])
        return f"{found[0]} ({names[client]})" if client < len(names) else found[0]

    return _IN_TEXT.sub(name, text)


@contextmanager
def naming_clients(names: Callable[[], Sequence[str] | None]) -> Iterator[None]:
    """Write the clients' names into errors that leave the ``with`` block.

    Args:
        names: Returns the names.
    """
    try:
        yield
    except FedLightningError as error:
        if (known := names()) is not None and error.args and isinstance(error.args[0], str):
            error.args = (named_in_text(error.args[0], known), *error.args[1:])
        raise


def resolve_clients(
    chosen: Sequence[Any], names: Sequence[str] | None, option: str = "clients"
) -> list[int]:
    """Return the ids that a user's names, ids and ranges of ids mean, ascending, each once.

    A word that is a client's name means that client, even if it looks like an id.

    Args:
        chosen: Words or numbers.
        names: The clients' names; ``None`` where they have none.
        option: What the user has set, for the message.

    Raises:
        ConfigError: A word is neither.

    Example:
        >>> resolve_clients(["mayo", "0"], ["charite", "mayo"]), resolve_clients(["2-4"], None)
        ([0, 1], [2, 3, 4])
    """
    by_name = {name: client for client, name in enumerate(names or ())}
    found: set[int] = set()
    for item in chosen:
        word = str(item)
        if word in by_name:
            found.add(by_name[word])
            continue
        match = _RANGE.fullmatch(word)
        if names is not None and re.match(r"0\d", word):
            match = None  # such as 007, which is meant as a name
        ends = match.groups() if match and match[2] else ()
        if match and any(by_name.get(end, int(end)) != int(end) for end in ends):
            raise ConfigError(
                f"{option}: {word!r} is a range of ids, but {match[1]} or {match[2]} is also the "
                "name of a client with another id; list the names."
            )
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, -1)
        if isinstance(item, bool) or not 0 <= last - first < _MOST:
            if names is not None:
                few = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
                raise ConfigError(
                    f"{option}: {word!r} is neither the name nor the id of a client."
                    f"{did_you_mean(word, names)} The clients are {few}."
                )
            raise ConfigError(
                f"{option} must be ids or ranges of ids, such as 3,7,10-19, got {item!r}."
            )
        found.update(range(first, last + 1))
    return sorted(found)
