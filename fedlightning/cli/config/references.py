"""``${data.num_clients}``: references between settings, by the keys that users write.

In the parsed config a class's settings are under ``init_args``, and everything is under the
command's name. Users write neither, so references have a resolver that adds both. It runs after
files and command line are merged, and therefore sees the final values.
"""

from __future__ import annotations

import inspect
import re
from contextvars import ContextVar
from typing import Any

from omegaconf import Container, DictConfig, OmegaConf

from fedlightning.cli.config.overrides import find_setting
from fedlightning.errors import ConfigError, did_you_mean

__all__ = ["install_resolver", "mark_references", "unmark_references"]

_RESOLVER = "setting"
_IDENTITY = "same"
_REFERENCE = re.compile(r"(?<!\\)\$\{\s*([A-Za-z_][\w.\[\]]*)\s*\}")
_open: ContextVar[tuple[str, ...]] = ContextVar("open_references", default=())


def mark_references(value: Any) -> Any:
    """Return a value, list or mapping with its references rewritten for our resolver.

    References that begin with a dot, and those to other resolvers (``${oc.env:HOME}``), stay. A
    list that contains references becomes one reference: jsonargparse defers type checks for strings
    only.

    Example:
        >>> mark_references({"lr": "${model.lr}", "home": "${oc.env:HOME}"})
        {'lr': '${setting:model.lr}', 'home': '${oc.env:HOME}'}
        >>> mark_references(["${data.num_clients}", 3])
        '${same:[${setting:data.num_clients},3]}'
    """
    if isinstance(value, dict):
        return {key: mark_references(item) for key, item in value.items()}
    if isinstance(value, list):
        items = [mark_references(item) for item in value]
        if any(isinstance(item, str) and item.startswith("${") for item in items) and not any(
            isinstance(item, (dict, list)) for item in items
        ):
            return f"${{{_IDENTITY}:[{','.join(map(_literal, items))}]}}"
        return items
    if isinstance(value, str):
        return _REFERENCE.sub(lambda found: f"${{{_RESOLVER}:{_dotted(found[1])}}}", value)
    return value


def install_resolver() -> None:
    """Register the resolver of the marked references with OmegaConf."""
    # OmegaConf 2.4 renamed it to a name that older releases use for something else
    register = getattr(OmegaConf, "register_resolver", OmegaConf.register_new_resolver)
    if "replace" not in inspect.signature(register).parameters:
        register = OmegaConf.register_new_resolver
    register(_RESOLVER, _look_up, replace=True)
    register(_IDENTITY, lambda value: value, replace=True)


def unmark_references(text: str) -> str:
    """Return a text with references as users write them."""
    return text.replace(f"${{{_RESOLVER}:", "${").replace(f"${{{_IDENTITY}:[", "[")


def _look_up(reference: str, *, _root_: Container) -> Any:
    trail = _open.get()
    if reference in trail:
        circle = " -> ".join(f"${{{name}}}" for name in (*trail, reference))
        raise ConfigError(f"{circle} is a circle of references.")
    token = _open.set((*trail, reference))
    try:
        return _walk(_root_, reference)
    finally:
        _open.reset(token)


def _walk(root: Container, reference: str) -> Any:
    node: Any = root
    names = reference.split(".")
    for number, name in enumerate(names):
        found = find_setting(node, name)
        if found is None and number == 0:  # below the command's name
            found = next(filter(None, (find_setting(each, name) for each in _commands(root))), None)
        if found is None:
            top = next((each for each in _commands(root) if "trainer" in each), root)
            hint = did_you_mean(name, _names(node if number else top))
            where = f"{'.'.join(names[:number])} has" if number else "there is"
            raise ConfigError(
                f"${{{reference}}} refers to nothing: {where} no setting {name!r}.{hint}"
            )
        holder, key = found
        node = holder[key]
    return node


def _commands(root: Container) -> list[DictConfig]:
    values = root.values() if isinstance(root, DictConfig) else ()
    return [value for value in values if isinstance(value, DictConfig)]


def _names(node: Any) -> list[str]:
    if not isinstance(node, DictConfig):
        return []
    settings = node.get("init_args") if "class_path" in node else None
    return [str(key) for key in (settings if isinstance(settings, DictConfig) else node)]


def _literal(item: Any) -> str:
    """Return a value in OmegaConf's grammar."""
    if isinstance(item, str) and not item.startswith("${"):
        escaped = item.replace("\\", "\\\\").replace("'", "\\'")
        return f"'{escaped}'"
    return {None: "null", True: "true", False: "false"}.get(item, str(item))


def _dotted(reference: str) -> str:
    return reference.replace("[", ".").replace("]", "")
