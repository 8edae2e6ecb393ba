"""Configs of runs that were made in Python, and what such a config cannot say."""

from __future__ import annotations

from typing import Any

from fedlightning.core.description import missing_in
from fedlightning.errors import ConfigError

__all__ = ["refuse_missing"]

_MOST_NAMED = 4


def refuse_missing(config: Any, where: str, key: str = "") -> None:
    """Refuse a config, or a part of one, that names objects which only another program had.

    Args:
        config: The config, or the part of it that is needed.
        where: The file, for the message.
        key: The key of the part.

    Raises:
        ConfigError: There are such; the message says what they are, and the ways out.

    Example:
        >>> refuse_missing({"model": {"class_path": "__main__.Net"}}, "config.yaml")
        Traceback (most recent call last):
        fedlightning.errors.ConfigError: config.yaml: model was the class Net of __main__, ...
    """
    missing = list(missing_in(config, key))
    if not missing:
        return
    named = [f"{name} was {what}" for name, what in missing[:_MOST_NAMED]]
    more = f" and {len(missing) - len(named)} more" if len(missing) > len(named) else ""
    own = any(what.startswith("the class") for _, what in missing)
    out = "put the class into a file that can be imported" if own else ""
    data = any(name.partition(".")[0] == "data" for name, _ in missing)
    out += (" and " if out and data else "") + (
        "give a data module that reads files" if data else ""
    )
    given = " and ".join(
        f"{each}=..."
        for each in ("module", "data", "federation")
        if any(name.partition(".")[0].replace("model", "module") == each for name, _ in missing)
    )
    pass_it = f"pass {given} to fedlightning.Run(folder)" if given else "make the run there again"
    raise ConfigError(
        f"{where}: {', '.join(named)}{more}, which only the program that made the run had. In "
        f"Python, {pass_it}" + (f"; for the command line, {out}." if out else ".")
    )
