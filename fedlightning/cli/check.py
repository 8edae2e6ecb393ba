"""``python -m fedlightning check``: the classes a config imports, and whether it is accepted.

Nothing is trained, no data is read, and no class of another package is imported.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from fedlightning.cli.config.class_names import (
    STRICT_RULE,
    NamedClass,
    named_classes,
    read_option,
    without_classes,
)
from fedlightning.cli.config.command import Command
from fedlightning.errors import ConfigError

__all__ = ["check"]


def check(command: Command) -> str:
    """Check a command's configs and options, and return a report on them.

    Raises:
        FedLightningError: ``fit`` would refuse them.
    """
    configs, options = _split(command.options)
    if not configs:
        raise ConfigError("check expects a config: python -m fedlightning check FILE [--key=value]")
    contents = [yaml.safe_load(Path(path).read_text(encoding="utf-8")) for path in configs]
    given = [dict([read_option(word)]) for word in options]
    named = [found for content in [*contents, *given] for found in named_classes(content)]
    foreign = [found for found in named if not found.trusted]
    if foreign and command.strict:
        raise ConfigError(f"{foreign[0].key}: {foreign[0].path} not allowed: {STRICT_RULE}.")
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for number, content in enumerate(contents):
            files.append(Path(folder) / f"{number}.yaml")
            files[-1].write_text(yaml.safe_dump(without_classes(content, foreign)))
        _parse(files, _kept(options, foreign))
    return _report([Path(path).name for path in configs], named, len(foreign))


def _split(options: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the config files and the other options, in the form ``--key=value``."""
    configs, others = [], []
    words = iter(options)
    for word in words:
        if word == "--config":
            configs.append(next(words))
        elif word.startswith("--") and "=" not in word:
            others.append(f"{word}={next(words, '')}")
        else:
            others.append(word)
    return configs, others


def _kept(options: Sequence[str], foreign: Sequence[NamedClass]) -> list[str]:
    """Return the options that do not concern a class that is left out."""
    keys = {found.key.removesuffix(".class_path").removesuffix("+") for found in foreign}
    return [
        word
        for word in options
        if not any(
            word[2:].partition("=")[0].removesuffix("+") == key or word.startswith(f"--{key}.")
            for key in keys
        )
    ]


def _parse(files: Sequence[Path], options: Sequence[str]) -> None:
    from fedlightning.cli.federated_cli import FederatedCLI
    from fedlightning.cli.parser import prepare_parsing

    class Parsing(FederatedCLI):
        def fit(self, **kwargs: Any) -> None:
            """Run nothing: building the objects has checked them."""

    prepare_parsing(strict=True)
    configs = [word for path in files for word in ("--config", str(path))]
    Parsing(args=["fit", *configs, *options])


def _report(configs: Sequence[str], named: Sequence[NamedClass], foreign: int) -> str:
    width = max((len(found.path) for found in named), default=0)
    lines = ["classes that would be imported:" if named else "no class would be imported."]
    for found in dict.fromkeys(named):
        note = "" if found.trusted else "  (of another package: --strict refuses it)"
        lines.append(f"  {found.path:<{width}}  {found.key}{note}")
    unchecked = f"; settings of {foreign} not checked, as that needs an import" if foreign else ""
    return "\n".join([*lines, f"ok: {', '.join(configs)} would be accepted{unchecked}"])
