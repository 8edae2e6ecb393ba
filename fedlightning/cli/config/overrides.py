"""Apply settings to a config, by the keys that users write."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from fedlightning.errors import ConfigError, did_you_mean

__all__ = ["apply_overrides", "settings_in"]

_OF_CLASSES = ("class_path", "init_args", "dict_kwargs")


def apply_overrides(config: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of a config with settings applied to it.

    A key may be dotted, a value a mapping of further keys. Within a class's settings ``init_args``
    may be left out. A class that is set again starts with its own settings. An item of a list of
    classes is addressed by its class's name, ``null`` removes it, and ``key+`` appends to a list.

    Args:
        config: The parsed YAML.
        settings: The settings to apply.

    Raises:
        ConfigError: A key continues below a value that has no settings.

    Example:
        >>> base = {"model": {"class_path": "MLP", "init_args": {"lr": 0.1}}}
        >>> apply_overrides(base, {"model.lr": 0.2, "trainer": {"max_epochs": 3}})
        {'model': {'class_path': 'MLP', 'init_args': {'lr': 0.2}}, 'trainer': {'max_epochs': 3}}
        >>> apply_overrides({"trainer": {"callbacks": [{"class_path": "Timer"}]}},
        ...     {"trainer.callbacks.Timer.duration": "00:01:00:00"})["trainer"]["callbacks"]
        [{'class_path': 'Timer', 'init_args': {'duration': '00:01:00:00'}}]
    """
    result: dict[str, Any] = copy.deepcopy(dict(config))
    for key, value in settings.items():
        _set(result, str(key).split("."), copy.deepcopy(value), str(key))
    return result


def settings_in(config: Any, prefix: str = "") -> dict[str, Any]:
    """Return a config's values by dotted keys as users write them.

    Example:
        >>> settings_in({"model": {"class_path": "MLP", "init_args": {"lr": 0.1}}, "a": [1]})
        {'model': 'MLP', 'model.lr': 0.1, 'a': [1]}
        >>> settings_in({"callbacks": [{"class_path": "Timer", "init_args": {"duration": 5}}]})
        {'callbacks.Timer': True, 'callbacks.Timer.duration': 5}
    """
    if isinstance(config, Mapping):
        found: dict[str, Any] = {}
        for name, value in config.items():
            if name == "class_path":
                found[prefix] = _short(str(value))
            else:
                inner = prefix if name in _OF_CLASSES else f"{prefix}.{name}".removeprefix(".")
                found |= settings_in(value, inner)
        return found
    names = [_class_name(item) for item in config] if isinstance(config, list) else []
    if names and all(names) and len(set(names)) == len(names):
        found = {}
        for item in config:
            key = f"{prefix}.{_class_name(item)}"
            inner_settings = settings_in(item, key) if isinstance(item, Mapping) else {}
            found |= {**inner_settings, key: True}
        return {key: found[key] for key in sorted(found)}
    return {prefix: config} if prefix else {}


def _set(node: Any, path: list[str], value: Any, key: str) -> None:
    if isinstance(node, list):
        _set_item(node, path, value, key)
        return
    if "class_path" in node and path[0] not in _OF_CLASSES:
        node = _mapping_at(node, "init_args")
    name, rest = path[0], path[1:]
    if rest:
        _set(_inner(node, name, key), rest, value, key)
    elif name.endswith("+"):
        kept = node.get(name[:-1]) or []
        kept = kept if isinstance(kept, list) else [kept]
        node[name[:-1]] = [*kept, *(value if isinstance(value, list) else [value])]
    elif isinstance(value, Mapping) and "class_path" not in value and node.get(name) is not None:
        inner = _inner(node, name, key)
        for deeper, item in value.items():
            _set(inner, str(deeper).split("."), item, f"{key}.{deeper}")
    elif isinstance(value, Mapping) and "class_path" not in value:
        node[name] = {}
        for deeper, item in value.items():
            _set(node[name], str(deeper).split("."), item, f"{key}.{deeper}")
    else:
        node[name] = value


def _set_item(items: list[Any], path: list[str], value: Any, key: str) -> None:
    names = [_class_name(item) for item in items]
    if path[0] not in names:
        above = key.removesuffix("." + ".".join(path))
        raise ConfigError(
            f"{key}: {above} has no {path[0]}, only {', '.join(filter(None, names))}."
            f"{did_you_mean(path[0], filter(None, names))} {above}+ appends to the list."
        )
    index = names.index(path[0])
    if isinstance(items[index], str):
        items[index] = {"class_path": items[index]}
    if path[1:]:
        _set(items[index], path[1:], value, key)
    elif value is None:
        del items[index]
    elif isinstance(value, Mapping) and "class_path" not in value:
        for deeper, inner in value.items():
            _set(items[index], str(deeper).split("."), inner, f"{key}.{deeper}")
    else:
        items[index] = value


def _inner(node: dict[str, Any], name: str, key: str) -> Any:
    """Return the mapping or list at a key; the bare name of a class becomes a mapping."""
    found = node.get(name)
    if isinstance(found, str) and _is_class(found):
        found = node[name] = {"class_path": found}
    if found is None:
        found = node[name] = {}
    if not isinstance(found, (dict, list)):
        raise ConfigError(f"{key}: {name} is {found!r}, which has no settings.")
    return found


def _mapping_at(node: dict[str, Any], name: str) -> dict[str, Any]:
    if not isinstance(node.get(name), dict):
        node[name] = {}
    inner: dict[str, Any] = node[name]
    return inner


def _class_name(item: Any) -> str | None:
    path = item.get("class_path") if isinstance(item, Mapping) else item
    return _short(path) if isinstance(path, str) and _is_class(path) else None


def _is_class(text: str) -> bool:
    return _short(text)[:1].isupper() and text.replace(".", "_").isidentifier()


def _short(path: str) -> str:
    return path.rpartition(".")[2]
