"""Objects in the words of a config: a class's path, and what its constructor was given.

A run that a config starts is described by that config. A run made in Python has objects instead,
whose description is made here: of what they were constructed with, never of what they hold. What no
config can say (arrays, datasets, functions without a name) leaves a text that begins with
:data:`ONLY_IN_PYTHON` in its place, so whoever reads the config can tell what is missing.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import os
import re
import weakref
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

__all__ = [
    "ONLY_IN_PYTHON",
    "class_path",
    "described",
    "forget_arguments",
    "missing_in",
    "note_arguments",
    "parameters_of",
    "setting_names",
]

ONLY_IN_PYTHON = "<only in Python: "
"""What a text in the place of a value begins with that no config can say."""

_SECRET = re.compile(
    r"(?i)passw|pass_?phrase|secret|credential|(api|access|private|signing|encryption|ssh)[_-]?key|"
    r"(^|[_.-])(auth|pwd|token)$"
)
_OF_TOKENIZERS = re.compile(
    r"(?i)(^|[_.-])(pad|mask|unk|eos|bos|cls|sep|start|end|stop|special)_token$"
)
_MOST_ITEMS = 1_000
_DEEPEST = 8
_noted: dict[int, tuple[weakref.ref[Any], dict[str, Any]]] = {}


def note_arguments(made: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Note what an object is constructed with; what is not plain is noted by its kind alone.

    The note lies beside the object, whose attributes, equality and ``repr`` do not change. It goes
    when the object goes, and holds no reference to arrays or datasets.

    Args:
        made: The object, before its ``__init__``.
        args: The positional arguments of its constructor.
        kwargs: The others.
    """
    kind: type = type(made)
    names = list(parameters_of(kind))
    given = {name: _kept(value) for name, value in zip(names, args, strict=False)}
    given |= {name: _kept(value) for name, value in kwargs.items()}
    if len(args) > len(names):  # ``*args``, which have no names
        given["args"] = _only_in_python(args[len(names) :])
    key = id(made)

    def forget(_: Any) -> None:
        _noted.pop(key, None)

    _noted[key] = weakref.ref(made, forget), given


def forget_arguments(made: Any) -> None:
    """Forget what an object was constructed with: it has become a copy of another one."""
    _noted.pop(id(made), None)


def _kept(value: Any) -> Any:
    """Return what is noted of an argument: settings themselves, of all else the description."""
    if isinstance(value, (list, tuple)) and any(id(item) in _noted for item in value):
        return [_kept(item) for item in value]
    return value if id(value) in _noted else described(value)


def described(value: Any, deep: int = 0, whole: bool = True) -> Any:
    """Return a value as a config would say it.

    Plain values stay. An object that notes its arguments is ``class_path`` and ``init_args``, with
    the defaults of what was not given; so are dataclasses, and LightningModules that have called
    ``save_hyperparameters``. Classes and functions are their import paths.

    Args:
        value: The value.
        deep: How many values it is part of.
        whole: Whether defaults are said, too.

    Example:
        >>> from fedlightning.datamodules import Shards
        >>> described({"partition": Shards(2), "lr": 0.1})["partition"]
        {'class_path': 'fedlightning.datamodules.Shards', 'init_args': {'per_client': 2}}
        >>> described([object()])
        '<only in Python: a list of 1 object>'
    """
    if isinstance(value, str):
        return re.sub(r"(?<=://)[^/@\s]+@", "", str(value))  # a name and password in a URL
    if value is None or type(value) in (bool, int, float):
        return value
    if deep > _DEEPEST:
        return _only_in_python(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        if len(value) > _MOST_ITEMS:
            return _only_in_python(value)
        items = [described(item, deep + 1, whole) for item in value]
        settings = any(isinstance(item, dict) and "class_path" in item for item in items)
        wanting = not settings and any(map(_is_missing, items))
        return _only_in_python(value) if wanting else items
    if isinstance(value, dict):
        if len(value) > _MOST_ITEMS or not all(isinstance(key, str) for key in value):
            return _only_in_python(value)
        pairs = {key: _said(key, item, deep, whole) for key, item in value.items()}
        wanting = len(pairs) > 1 and all(map(_is_missing, pairs.values()))
        return _only_in_python(value) if wanting else pairs
    if isinstance(value, functools.partial):
        return _partial(value, deep, whole)
    if isinstance(value, type) or inspect.isroutine(value):
        path = class_path(value)
        return path if _is_importable(path) else _only_in_python(value)
    if (item := getattr(value, "item", None)) is not None and type(value).__module__ == "numpy":
        return item() if getattr(value, "shape", None) == () else _only_in_python(value)
    arguments = _arguments(value, deep, whole)
    if arguments is None:
        return _only_in_python(value)
    return {"class_path": class_path(type(value)), "init_args": arguments}


def class_path(kind: Any) -> str:
    """Return the shortest path from which a class or function can be imported.

    Example:
        >>> from fedlightning import FedBABU
        >>> class_path(FedBABU), class_path(dict)
        ('fedlightning.FedBABU', 'builtins.dict')
    """
    whole, name = str(kind.__module__), str(kind.__qualname__)
    parts = whole.split(".")
    if parts[0] in ("fedlightning", "pytorch_lightning", "torch", "torchvision"):
        for length in range(1, len(parts)):
            above = ".".join(parts[:length])
            try:
                found = getattr(importlib.import_module(above), name, None)
            except ImportError:
                continue
            if found is kind:
                return f"{above}.{name}"
    return f"{whole}.{name}"


def missing_in(config: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield the keys of a config, as users write them, whose values no other process can have.

    Args:
        config: A config, or a part of one.
        key: The key of that part.

    Yields:
        A key, and what its value was: an object in memory, or a class of a program's own.

    Example:
        >>> train = described(object())
        >>> list(missing_in({"model": {"class_path": "__main__.Net"}, "data": {"train": train}}))
        [('model', 'the class Net of __main__'), ('data.train', 'an object')]
    """
    if isinstance(config, Mapping):
        path = config.get("class_path")
        if isinstance(path, str) and not _names_a_module(path):
            where, _, name = path.rpartition(".")
            of = "a function" if "<locals>" in path else where
            yield key, f"the class {name} of {of}"
            return
        for name, value in config.items():
            inner = key if name == "init_args" else f"{key}.{name}".removeprefix(".")
            yield from missing_in(value, inner)
    elif isinstance(config, list):
        for value in config:
            yield from missing_in(value, key)
    elif _is_missing(config):
        yield key, config.removeprefix(ONLY_IN_PYTHON).removesuffix(">")


def _is_missing(value: Any) -> bool:
    return isinstance(value, str) and value.startswith(ONLY_IN_PYTHON)


def _names_a_module(path: str) -> bool:
    return path.partition(".")[0] != "__main__" and "<locals>" not in path


def _is_importable(path: str) -> bool:
    return _names_a_module(path) and "<lambda>" not in path


@cache
def parameters_of(kind: type) -> dict[str, Any]:
    """Return a constructor's keywords and their defaults; ``inspect.Parameter.empty`` for none.

    A constructor that hands ``**kwargs`` on has the next class's, too.

    Example:
        >>> from fedlightning.datamodules import Shards
        >>> list(parameters_of(Shards))
        ['per_client']
    """
    found: dict[str, Any] = {}
    for base in kind.__mro__:
        if "__init__" not in vars(base) or base is object:
            continue
        try:
            parameters = list(inspect.signature(vars(base)["__init__"]).parameters.values())[1:]
        except (TypeError, ValueError):  # written in C
            break
        for each in parameters:
            if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY):
                found.setdefault(each.name, each.default)
        if not any(each.kind is each.VAR_KEYWORD for each in parameters):
            break
    return found


@cache
def setting_names(kind: type) -> tuple[str, ...]:
    """Return the names of a class's settings: of what a config may set.

    A keyword that a base class takes and the class itself sets is none of them.

    Example:
        >>> from fedlightning import FedBABU
        >>> "weights" in setting_names(FedBABU), "train" in setting_names(FedBABU)
        (True, False)
    """
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    try:
        return tuple(parser.add_class_arguments(kind, fail_untyped=False, as_group=False))
    except Exception:  # of annotations that it cannot read
        return ()


def _arguments(value: Any, deep: int, whole: bool) -> dict[str, Any] | None:
    """Return what an object was constructed with, as configs say it; ``None`` if nothing tells."""
    kind: type = type(value)
    noted = _notes_of(value)
    if noted is not None and not whole:
        return {name: _said(name, item, deep, whole) for name, item in noted.items()}
    if dataclasses.is_dataclass(value):
        fields = [field.name for field in dataclasses.fields(value) if field.init]
        return {name: _said(name, getattr(value, name), deep, whole) for name in fields}
    if noted is not None:
        return _with_defaults(kind, noted, deep)
    parameters = parameters_of(kind)
    if hasattr(value, "hparams_initial"):  # a module or data module of Lightning
        return _hyperparameters(value, parameters, deep, whole)
    if kind.__module__ == "builtins" or _takes_any(kind) or not hasattr(value, "__dict__"):
        return None
    held = vars(value)
    if not parameters.keys() <= held.keys() and not _is_stock_callback(kind):
        return None
    given = {name: _said(name, held[name], deep, whole) for name in parameters if name in held}
    if isinstance(given.get("min_delta"), float):
        given["min_delta"] = abs(given["min_delta"])  # EarlyStopping gives it a sign
    return given


def _notes_of(value: Any) -> dict[str, Any] | None:
    found = _noted.get(id(value))
    return found[1] if found is not None and found[0]() is value else None


def _hyperparameters(
    value: Any, parameters: Mapping[str, Any], deep: int, whole: bool
) -> dict[str, Any]:
    saved = dict(value.hparams_initial)
    given = {
        name: _said(name, item, deep, whole) for name, item in saved.items() if name in parameters
    }
    for name in parameters.keys() - given.keys():
        given[name] = (
            f"{ONLY_IN_PYTHON}{name} of {type(value).__name__}, which does not save it with "
            "save_hyperparameters>"
        )
    return {name: given[name] for name in parameters}


def _with_defaults(kind: type, given: Mapping[str, Any], deep: int) -> dict[str, Any]:
    parameters, settings = parameters_of(kind), setting_names(kind)
    every = {
        name: default
        for name, default in parameters.items()
        if name in settings and default is not inspect.Parameter.empty
    } | dict(given)
    ordered = sorted(every, key=list({**parameters, **every}).index)
    return {name: _said(name, every[name], deep, True) for name in ordered}


def _said(name: str, value: Any, deep: int, whole: bool) -> Any:
    """Return a named value as a config would say it; a password or a token is not said."""
    if isinstance(value, (str, list, tuple, dict)) and value and _is_secret(name):
        return f"{ONLY_IN_PYTHON}a secret>"
    return described(value, deep + 1, whole)


def _is_secret(name: str) -> bool:
    """Whether a name is that of a secret; the special tokens of a tokenizer are none."""
    return bool(_SECRET.search(name)) and not _OF_TOKENIZERS.search(name)


def _partial(value: functools.partial[Any], deep: int, whole: bool) -> Any:
    path = class_path(value.func)
    if value.args or not _is_importable(path):
        return _only_in_python(value)
    return {"class_path": path, "init_args": described(dict(value.keywords), deep + 1, whole)}


def _takes_any(kind: type) -> bool:
    """Whether a constructor takes arguments without names, or tells nobody which it takes."""
    try:
        parameters = inspect.signature(kind).parameters.values()
    except (TypeError, ValueError):
        return True
    return any(each.kind is each.VAR_POSITIONAL for each in parameters)


def _is_stock_callback(kind: type) -> bool:
    return kind.__module__.startswith("pytorch_lightning.callbacks")


def _only_in_python(value: Any) -> str:
    """Return the text for a value of which nothing is said but its kind."""
    name = type(value).__name__
    text = f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"
    if isinstance(value, (list, tuple, dict)) and value:
        items = list(value.values() if isinstance(value, dict) else value)
        kinds = {type(item).__name__ for item in items}
        text += f" of {len(items):,} {kinds.pop() if len(kinds) == 1 else 'object'}"
        text += "s" if len(items) > 1 else ""
    elif inspect.isroutine(value) or isinstance(value, type):
        text = f"{name} {value.__qualname__}"
    return f"{ONLY_IN_PYTHON}{text}>"
