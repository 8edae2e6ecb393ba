"""Apply settings to a config, by the keys that users write."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from fedlightning.errors import ConfigError, did_you_mean

__all__ = ["apply_overrides", "callbacks_in", "class_name", "find_setting", "settings_in"]

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
    names = [class_name(item) for item in config] if isinstance(config, list) else []
    if names and all(names) and len(set(names)) == len(names):
        found = {}
        for item in config:
            key = f"{prefix}.{class_name(item)}"
            inner_settings = settings_in(item, key) if isinstance(item, Mapping) else {}
            found |= {**inner_settings, key: True}
        return {key: found[key] for key in sorted(found)}
    return {prefix: config} if prefix else {}


def class_name(item: Any) -> str | None:
    """Return the name of the class that a config names, without its modules; else ``None``.

    Example:
        >>> class_name("fedlightning.MLP"), class_name({"class_path": "MLP"}), class_name("cpu")
        ('MLP', 'MLP', None)
    """
    path = item.get("class_path") if isinstance(item, Mapping) else item
    return _short(path) if isinstance(path, str) and _is_class(path) else None


def callbacks_in(config: Mapping[str, Any]) -> list[Any]:
    """Return the callbacks that a config names; a single one needs no list.

    Example:
        >>> callbacks_in({"trainer": {"callbacks": {"class_path": "Timer"}}}), callbacks_in({})
        ([{'class_path': 'Timer'}], [])
    """
    given = (config.get("trainer") or {}).get("callbacks") or []
    return list(given) if isinstance(given, list) else [given]


def find_setting(node: Any, name: str) -> tuple[Any, Any] | None:
    """Return the holder of a setting and its key there, ``None`` if it does not exist.

    A mapping holds it itself or in the ``init_args`` of its class; a list by class name or index.

    Args:
        node: A mapping or list, plain or OmegaConf's.
        name: One part of a dotted key.

    Example:
        >>> find_setting({"class_path": "MLP", "init_args": {"lr": 0.1}}, "lr")
        ({'lr': 0.1}, 'lr')
        >>> find_setting(["Timer", "EarlyStopping"], "EarlyStopping")
        (['Timer', 'EarlyStopping'], 1)
    """
    if isinstance(node, Mapping):
        if name in node:
            return node, name
        inner = node.get("init_args") if "class_path" in node else None
        return (inner, name) if isinstance(inner, Mapping) and name in inner else None
    if isinstance(node, Sequence) and not isinstance(node, str):
        names = [class_name(item) for item in node]
        if name in names:
            return node, names.index(name)
        if name.isdigit() and int(name) < len(node):
            return node, int(name)
    return None


def _set(node: Any, path: Sequence[str], value: Any, key: str) -> None:
    for name in path[:-1]:
        node = _inner(*_place(node, name, key), key)
    holder, name = _place(node, path[-1], key)
    if isinstance(name, str) and name.endswith("+"):
        kept = holder.get(name[:-1]) or []
        kept = kept if isinstance(kept, list) else [kept]
        holder[name[:-1]] = [*kept, *(value if isinstance(value, list) else [value])]
    elif isinstance(value, Mapping) and "class_path" not in value:
        inner = _inner(holder, name, key)
        for deeper, item in value.items():
            _set(inner, str(deeper).split("."), item, f"{key}.{deeper}")
    elif isinstance(holder, list) and value is None:
        del holder[name]
    else:
        holder[name] = value


def _place(node: Any, name: str, key: str) -> tuple[Any, Any]:
    """Return the holder and key of a setting that exists or is to be created."""
    if (found := find_setting(node, name)) is not None:
        return found
    if isinstance(node, list):
        names = list(filter(None, map(class_name, node)))
        above = key.rpartition(f".{name}")[0]
        raise ConfigError(
            f"{key}: {above} has no {name}, only {', '.join(names)}.{did_you_mean(name, names)} "
            f"{above}+ appends to the list."
        )
    inside = "class_path" in node and name not in _OF_CLASSES
    return (_inner(node, "init_args", key) if inside else node), name


def _inner(holder: Any, name: Any, key: str) -> Any:
    """Return the mapping or list at a key; the bare name of a class becomes a mapping."""
    found = holder[name] if isinstance(holder, list) else holder.get(name)
    if isinstance(found, str) and _is_class(found):
        found = holder[name] = {"class_path": found}
    if found is None:
        found = holder[name] = {}
    if not isinstance(found, (dict, list)):
        raise ConfigError(f"{key}: {name} is {found!r}, which has no settings.")
    return found


def _is_class(text: str) -> bool:
    return _short(text)[:1].isupper() and text.replace(".", "_").isidentifier()


def _short(path: str) -> str:
    return path.rpartition(".")[2]
