"""The words after ``compare`` and ``report``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fedlightning.cli.config.strict_yaml import check_text
from fedlightning.errors import ConfigError, did_you_mean

__all__ = ["Options", "read_words"]


@dataclass(frozen=True)
class Options:
    """The parsed words of a command line.

    Args:
        positional: Words that are not options.
        flags: Options without a value.
        values: Options with a value, parsed as YAML.
        settings: Settings of a config, by dotted key.
    """

    positional: tuple[str, ...] = ()
    flags: frozenset[str] = frozenset()
    values: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)


def read_words(
    words: Sequence[str], command: str, flags: Sequence[str], values: Sequence[str]
) -> Options:
    """Parse the words after a command.

    Args:
        words: The words.
        command: The command's name, for messages.
        flags: Options without a value.
        values: Options that take a value, ``--workers 2`` or ``--workers=2``.

    Raises:
        ConfigError: An option is unknown, or lacks its value.

    Example:
        >>> read_words(["a.yaml", "--workers=2", "--trainer.max_epochs", "3", "--dry-run"],
        ...     "compare", ["dry-run"], ["workers"]).settings
        {'trainer.max_epochs': 3}
    """
    positional: list[str] = []
    found_flags: set[str] = set()
    found: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    rest = iter(words)
    for word in rest:
        name, equals, text = word.removeprefix("--").partition("=")
        name = {"-c": "config"}.get(name, name)
        if not word.startswith("-"):
            positional.append(word)
        elif name in flags and not equals:
            found_flags.add(name)
        elif name in values or ("." in name and word.startswith("--")):
            value = text if equals else next(rest, None)
            if value is None or (not equals and value.startswith("--")):
                raise ConfigError(f"--{name} expects a value, e.g. --{name}=...")
            (found if name in values else settings)[name] = _value(value, name)
        else:
            known = [*flags, *values]
            raise ConfigError(
                f"{command} has no option --{name}.{did_you_mean(name, known)} "
                f"Options: {', '.join(f'--{option}' for option in known)}."
            )
    return Options(tuple(positional), frozenset(found_flags), found, settings)


def _value(text: str, name: str) -> Any:
    from jsonargparse import get_loader

    try:
        check_text(text, f"--{name}")
        return get_loader("yaml")(text)
    except ConfigError as error:
        if error.__cause__ is None:
            raise
        return text
