"""The argument parser: no abbreviations, strict YAML, references by short keys, one-line errors."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from enum import Enum
from typing import Any, NoReturn

import yaml
from jsonargparse import Namespace, get_loader, set_loader, set_parsing_settings
from lightning_utilities.core.enums import StrEnum
from pytorch_lightning.cli import LightningArgumentParser

from fedlightning.cli.config.class_names import TRUSTED
from fedlightning.cli.config.references import install_resolver, mark_references
from fedlightning.cli.config.strict_yaml import check_text
from fedlightning.cli.diagnostics.explain import explain
from fedlightning.cli.usage import usage
from fedlightning.errors import ConfigError

__all__ = ["FederatedArgumentParser", "prepare_parsing"]

_MODE = "omegaconf+"


class FederatedArgumentParser(LightningArgumentParser):
    """Lightning's argument parser, with references that are resolved after all overrides.

    ``omegaconf+`` resolves when files and command line are merged; plain ``omegaconf`` while each
    file is read, so that an override would not reach what refers to it.

    Args:
        *args: Arguments of Lightning's parser.
        command: The command whose options it parses.
        **kwargs: Arguments of Lightning's parser.

    Raises:
        ConfigError: Instead of jsonargparse's usage message and exit.
    """

    def __init__(self, *args: Any, command: str | None = None, **kwargs: Any) -> None:
        self.command = command
        kwargs.setdefault("parser_mode", _MODE)
        kwargs.setdefault("allow_abbrev", False)
        kwargs.setdefault("prog", "python -m fedlightning")
        kwargs.setdefault("usage", usage())
        super().__init__(*args, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise the error as one line."""
        if (
            not self.exit_on_error
        ):  # an attempt to parse a class's settings; the outer parser reports
            super().error(message, ex)
        parser = getattr(ex, "subcommand_parser", None) or self
        if found := re.match(r"argument (--\S+): expected", message):
            message = message.replace(
                found[1], _without_value(found[1], getattr(self, "args", [])), 1
            )
        raise ConfigError(explain(message, parser.option_names())) from ex

    def get_defaults(self, skip_validation: bool = False, **kwargs: Any) -> Any:
        """Return the defaults, without the settings of a default class.

        They are filled in at the end. Another class in its place would inherit settings of the same
        name: FedAvg the uniform weights of FedBABU.
        """
        defaults = super().get_defaults(skip_validation, **kwargs)
        for action in self._actions:
            given: Any = action.default
            if not isinstance(given, (dict, Namespace)):
                continue
            if "class_path" in given and "init_args" not in given:
                defaults.get(action.dest, {}).pop("init_args", None)
        return defaults

    def option_names(self) -> list[str]:
        """Return the names of the options, without dashes."""
        return [
            option[2:]
            for action in self._actions
            for option in action.option_strings
            if option.startswith("--") and not option.endswith(".help")
        ]


def _without_value(option: str, words: Sequence[str]) -> str:
    """Return the option that lacks a value as it was written; argparse names its prefix."""
    for word, after in zip(words, [*words[1:], "--"], strict=True):
        if word.startswith(option) and "=" not in word and after.startswith("--"):
            return word
    return option


def prepare_parsing(strict: bool = False) -> None:
    """Configure jsonargparse in this process: local files only, no dangerous classes.

    Args:
        strict: Refuse classes of other packages than this one, torch and Lightning, before they are
            imported. A refused class stays refused.

    Raises:
        ConfigError: This jsonargparse cannot be strict.
    """
    wanted: dict[str, Any] = {
        "config_read_mode_urls_enabled": False,
        "config_read_mode_fsspec_enabled": False,
        "import_path_denylist": ["*"] if strict else [],
        "import_path_allowlist": list(TRUSTED),
    }
    known = inspect.signature(set_parsing_settings).parameters
    if strict and "import_path_denylist" not in known:
        raise ConfigError("--strict needs a newer jsonargparse; upgrade it.")
    set_parsing_settings(**{name: value for name, value in wanted.items() if name in known})
    set_loader(_MODE, _load, (yaml.YAMLError,))
    # some defaults of Lightning, such as Timer's interval, have types that YAML cannot write
    yaml.SafeDumper.add_multi_representer(StrEnum, _write_enum)
    install_resolver()


def _write_enum(dumper: yaml.SafeDumper, member: Enum) -> yaml.Node:
    return dumper.represent_str(str(member.value))


def _load(text: str, path: str = "") -> Any:
    """Read a config file, or one value of the command line."""
    try:
        check_text(text, path or "value")
    except ConfigError as error:
        if path or not isinstance(error.__cause__, (yaml.YAMLError, ValueError, OverflowError)):
            raise
        if not isinstance(error.__cause__, yaml.YAMLError):
            return text  # the check of the setting's type reports it
    return mark_references(get_loader("yaml")(text))
