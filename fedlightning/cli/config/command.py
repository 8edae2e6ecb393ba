"""Read a command line before the parser does: find config files, notice repeated options."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from fedlightning.cli.config.only_in_python import refuse_missing
from fedlightning.cli.config.recipes import find_config
from fedlightning.cli.config.strict_yaml import check_config
from fedlightning.core.description import ONLY_IN_PYTHON
from fedlightning.errors import ConfigError

__all__ = ["Command", "read_command"]

_CONFIG = ("--config", "-c")
_STRICT = "FEDLIGHTNING_STRICT"


@dataclass(frozen=True)
class Command:
    """A command to run.

    Args:
        name: A command (see :data:`fedlightning.cli.usage.COMMANDS`).
        options: The words after it, with the paths of the config files in place of their names.
        warnings: What is allowed, but is probably a mistake.
        strict: Whether configs may name classes of this package, torch and Lightning only.
    """

    name: str
    options: tuple[str, ...] = ()
    warnings: tuple[str, ...] = field(default=(), compare=False)
    strict: bool = False


def read_command(arguments: Sequence[str]) -> Command:
    """Read a command line whose first word is a command.

    ``--strict``, or ``FEDLIGHTNING_STRICT=1`` in the environment, makes it strict.

    Raises:
        ConfigError: A config file is missing, or is not valid YAML.
        OSError: A config file cannot be read.

    Example:
        >>> read_command(["fit", "--model.lr=1", "--model.lr", "2"]).warnings
        ('model.lr given twice; the last one counts',)
    """
    options: list[str] = []
    words = iter(arguments[1:])
    for word in words:
        key, equals, value = word.partition("=")
        if arguments[0] == "check" and not word.startswith("-"):
            key, equals, value = "--config", "=", word
        if key not in _CONFIG:
            options.append(word)
            continue
        name = value if equals else next(words, "")
        if not name or name.startswith("--"):
            raise ConfigError("--config expects a file, e.g. --config quickstart.yaml.")
        options += ["--config", str(_checked(find_config(name)))]
    strict = "--strict" in options or os.environ.get(_STRICT, "0") not in ("", "0")
    options = [word for word in options if word != "--strict"]
    return Command(arguments[0], tuple(options), tuple(_repetitions(options)), strict)


def _checked(path: Path) -> Path:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (at byte {error.start}).") from error
    check_config(text, str(path))
    if "variants:" in text and {"base", "variants"} <= set(yaml.safe_load(text)):
        raise ConfigError(
            f"{path} is a study of several runs: python -m fedlightning compare --config {path}"
        )
    if any(sign in text for sign in (ONLY_IN_PYTHON, "__main__", "<locals>")):
        refuse_missing(yaml.safe_load(text), str(path))
    return path


def _repetitions(options: Sequence[str]) -> Iterator[str]:
    counts: dict[str, int] = {}
    for key in (word[2:].partition("=")[0] for word in options if word.startswith("--")):
        if key == "config":
            continue
        # a class set again starts with its own settings, and so does an item appended to a list
        for inner in [seen for seen in counts if seen.startswith(key.removesuffix("+") + ".")]:
            del counts[inner]
        if not key.endswith("+"):
            counts[key] = counts.get(key, 0) + 1
    for key, count in counts.items():
        if count > 1:
            yield f"{key} given {'twice' if count == 2 else f'{count} times'}; the last one counts"
