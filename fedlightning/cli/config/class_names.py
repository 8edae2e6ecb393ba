"""The classes that a config names, found without importing anything."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import yaml

__all__ = [
    "STRICT_RULE",
    "TRUSTED",
    "NamedClass",
    "named_classes",
    "read_option",
    "without_classes",
]

TRUSTED = (
    "fedlightning",
    "lightning_fabric",
    "pytorch_lightning",
    "torch.nn",
    "torch.optim",
    "torchmetrics",
    "torchvision.models",
    "torchvision.transforms",
)
"""Packages whose classes a config may name with ``--strict``."""

STRICT_RULE = "with --strict, configs name classes of fedlightning, Lightning and torch only"

_IMPORT_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")
_NAME = re.compile(r"[A-Z]\w*")
_CLASS_KEYS = {
    "aggregator", "algorithm", "algorithms", "callbacks", "compression", "data", "delays", "local",
    "logger", "lr_scheduler", "max_norm", "model", "optimizer", "partition", "plugins", "privacy",
    "profiler", "sampler", "schedule", "server", "strategy", "weighting", "windows",
}  # fmt: skip


@dataclass(frozen=True)
class NamedClass:
    """A class that a config names.

    Args:
        path: As written in the config: an import path, or a bare name.
        key: Its key, e.g. ``trainer.callbacks``.
        place: Keys and list indices of it in the parsed config.
    """

    path: str
    key: str
    place: tuple[str | int, ...]

    @property
    def trusted(self) -> bool:
        """Whether ``--strict`` allows it; a bare name can only be an imported class."""
        return "." not in self.path or any(
            self.path.startswith(f"{package}.") for package in TRUSTED
        )


def named_classes(config: Any) -> list[NamedClass]:
    """Return the classes that a config names, in its order.

    These are values of ``class_path``, values where a class is expected, and any other string that
    reads like the import path of an installed package: a class of another package may expect a
    class there, and the string would be imported.

    Args:
        config: The parsed YAML.

    Example:
        >>> config = {"model": {"class_path": "mine.Net"}, "trainer": {"callbacks": ["Timer"]}}
        >>> [(named.path, named.key, named.trusted) for named in named_classes(config)]
        [('mine.Net', 'model', False), ('Timer', 'trainer.callbacks', True)]
    """
    return list(_walk(config, ()))


def without_classes(config: Any, classes: Iterable[NamedClass]) -> Any:
    """Return a copy of a config without some classes and their settings; replace required ones.

    Example:
        >>> config = {"model": {"class_path": "mine.Net"}, "trainer": {"callbacks": ["a.B", "C"]}}
        >>> without_classes(config, [named for named in named_classes(config) if not named.trusted])
        {'trainer': {'callbacks': ['C']}, 'model': {'class_path': 'MLP'}}
    """
    return _without(config, {named.place for named in classes}, ())


def read_option(word: str) -> tuple[str, Any]:
    """Return key and value of ``--key=value``, the value parsed as YAML."""
    key, _, text = word.removeprefix("--").partition("=")
    try:
        return key, yaml.safe_load(text)
    except yaml.YAMLError:
        return key, text


def _walk(node: Any, place: tuple[str | int, ...]) -> Iterator[NamedClass]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _walk(value, (*place, str(key)))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from _walk(value, (*place, index))
    elif isinstance(node, str) and _names_a_class(node, place):
        owner = place[:-1] if place[-1:] == ("class_path",) else place
        words = [str(part) for part in owner if isinstance(part, str) and part != "init_args"]
        yield NamedClass(node, ".".join(words), owner)


def _names_a_class(text: str, place: tuple[str | int, ...]) -> bool:
    if place[-1:] == ("class_path",):
        return True
    keys = [part for part in place if isinstance(part, str)]
    if keys and keys[-1].removesuffix("+").rpartition(".")[2] in _CLASS_KEYS:
        return bool(_IMPORT_PATH.fullmatch(text) or _NAME.fullmatch(text))
    return bool(_IMPORT_PATH.fullmatch(text)) and _can_be_found(text.partition(".")[0])


def _can_be_found(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):
        return False


def _without(node: Any, places: set[tuple[str | int, ...]], place: tuple[str | int, ...]) -> Any:
    if isinstance(node, dict):
        kept = {
            key: _without(value, places, (*place, str(key)))
            for key, value in node.items()
            if (*place, str(key)) not in places
        }
        for key, stand_in in (("model", "MLP"), ("data", "Digits")):
            if not place and (key,) in places:
                kept[key] = {"class_path": stand_in}
        return kept
    if isinstance(node, list):
        return [
            _without(value, places, (*place, index))
            for index, value in enumerate(node)
            if (*place, index) not in places
        ]
    return node
