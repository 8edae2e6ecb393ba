"""Values as a checkpoint may hold them: whatever needs no code of anybody's to be read back."""

from __future__ import annotations

import dataclasses
import functools
import sys
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Callable, Mapping, Set
from enum import Enum
from os import PathLike, fspath
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["changed_kinds", "plain_checkpoint", "plain_value"]

_BASICS: Mapping[type, Callable[[Any], Any]] = {
    str: str.__str__,
    bytes: bytes,
    int: int.__int__,
    float: float.__float__,
    complex: complex,
}
_AS_THEY_ARE = frozenset(
    {*_BASICS, type(None), bool, bytearray, torch.dtype, torch.device, torch.Size, torch.layout}
)
_USED_ALIKE = (str, bytes, int, float, complex, np.generic, Tensor, PathLike, tuple, range, Set)
_DEEPEST = 50
_LONGEST = 2000

_HYPERPARAMETERS = ("hyper_parameters", "datamodule_hyper_parameters")
_HYPERPARAMETER_TYPES = ("hparams_type", "datamodule_hparams_type")


def plain_value(value: Any) -> Any:
    """Return a value as numbers, strings, tensors, and lists, tuples, sets and dicts of these.

    A NumPy number becomes Python's, a NumPy array a tensor, a path a string, an enum's member its
    name, an OmegaConf config, a dataclass, a namespace or any other mapping a dict. What has no
    such form, as a function or a module, becomes a text.

    Example:
        >>> import pathlib
        >>> plain_value({"lr": np.float64(0.5), "folder": pathlib.PurePosixPath("a/b")})
        {'lr': 0.5, 'folder': 'a/b'}
        >>> plain_value([frozenset({1}), torch.nn.Tanh, functools.partial(torch.optim.SGD, lr=0.5)])
        [{1}, 'torch.nn.modules.activation.Tanh', 'functools.partial(torch.optim.sgd.SGD, lr=0.5)']
    """
    return _plain(value, _as_text, ())


def changed_kinds(values: Mapping[str, Any]) -> dict[str, str]:
    """Return which values are of another kind in a checkpoint, and as what they are stored there.

    Numbers and paths are not listed: they are used alike.

    Example:
        >>> changed_kinds({"lr": np.float64(0.5), "activation": torch.nn.Tanh()})
        {'activation': 'Tanh as text'}
    """
    if _is_config(values):  # Lightning stores the whole as one config, and makes a dict of it
        inner = plain_value(values)
        return {k: "a config as a dict" for k, v in inner.items() if isinstance(v, (dict, list))}
    found = {name: _change(value, plain_value(value)) for name, value in values.items()}
    return {name: change for name, change in found.items() if change is not None}


def plain_checkpoint(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Return a checkpoint whose hyperparameters are plain values, wherever they are in it.

    Those of the module and of the data module are, and what they have become in optimizers and
    schedules. Of callbacks' states only the numbers are: a callback takes its own state back.

    Example:
        >>> plain_checkpoint({"hyper_parameters": {"lr": np.float32(0.5)}, "epoch": 1})
        {'hyper_parameters': {'lr': 0.5}, 'epoch': 1}
    """
    plain = dict(checkpoint)
    for key in _HYPERPARAMETERS:
        if key in plain:
            plain[key] = plain_value(plain[key])
    for key in _HYPERPARAMETER_TYPES:
        if isinstance(plain.get(key), type):
            plain[key] = _path_of(plain[key])  # Lightning takes a string for dicts with attributes
    for key in ("optimizer_states", "lr_schedulers", "callbacks"):
        if key in plain:
            plain[key] = _plain(plain[key], _as_it_is, ())
    return plain


# What becomes of a value that is not plain; the second argument has the ids of what it is part of.
_Other = Callable[[Any, tuple[int, ...]], Any]


def _as_it_is(value: Any, above: tuple[int, ...]) -> Any:
    """Return what only its owner can take back as it is."""
    return value


def _as_text(value: Any, above: tuple[int, ...]) -> Any:
    """Return the nearest plain value; in the end, a text."""
    if id(value) in above or len(above) > _DEEPEST:
        return "..."
    if (simpler := _simpler(value)) is not None:
        return _plain(simpler[0], _as_text, (*above, id(value)))
    return _text(value)


def _plain(value: Any, other: _Other, above: tuple[int, ...]) -> Any:
    """Return a value with plain numbers in it, and of all else what ``other`` makes of it."""
    kind = type(value)
    if kind in _AS_THEY_ARE or kind in (Tensor, nn.Parameter):
        return value
    if isinstance(value, (np.number, np.bool_)):
        return value.item()
    if kind not in (dict, OrderedDict, list, tuple, set):
        return other(value, above)
    if id(value) in above or len(above) > _DEEPEST:
        return "..."
    within = (*above, id(value))
    if kind in (dict, OrderedDict):
        return kind(
            (_hashable(_plain(key, other, within)), _plain(inner, other, within))
            for key, inner in value.items()
        )
    items = [_plain(inner, other, within) for inner in value]
    return kind(map(_hashable, items)) if kind is set else kind(items)


def _hashable(value: Any) -> Any:
    try:
        hash(value)
    except TypeError:
        return repr(value)
    return value


def _simpler(value: Any) -> tuple[Any] | None:
    """Return a value of a kind that is nearer to plain ones, alone in a tuple, if there is one."""
    for basic, plain in _BASICS.items():
        if isinstance(value, basic):  # members of an enum of strings, too, equal their values
            return (plain(value),)
    if isinstance(value, Enum):
        return (value.name,)
    if isinstance(value, Tensor):
        return (value.detach().as_subclass(Tensor),)
    if isinstance(value, np.ndarray):
        numbers = value.dtype.kind in "biufc"
        return (torch.from_numpy(value.copy()) if numbers else value.tolist(),)
    if isinstance(value, (type, nn.Module)):
        return None
    if isinstance(value, PathLike):
        return (fspath(value),)
    if _is_config(value):
        return (_contents(value),)
    if dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value)]
        return ({name: getattr(value, name, None) for name in names},)
    if isinstance(value, (Namespace, SimpleNamespace)):
        return (vars(value),)
    if isinstance(value, Mapping):
        return (dict(value),)
    if isinstance(value, (list, range)):
        return (list(value),)
    if isinstance(value, tuple):
        return (tuple(value),)
    return (set(value),) if isinstance(value, Set) else None


def _is_config(value: Any) -> bool:
    """Whether it is a config of OmegaConf, which is imported where somebody has made one."""
    omegaconf = sys.modules.get("omegaconf")
    return omegaconf is not None and isinstance(value, omegaconf.Container)


def _contents(config: Any) -> Any:
    """Return a config of OmegaConf as dicts and lists."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        return OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException:  # an interpolation that leads nowhere in this part of a config
        return OmegaConf.to_container(config, resolve=False)


def _text(value: Any) -> str:
    """Return what a reader recognises a value by; the same in every process."""
    if isinstance(value, functools.partial):
        inner = [_text(value.func), *map(_text, value.args)]
        inner += [f"{name}={_text(given)}" for name, given in value.keywords.items()]
        return f"functools.partial({', '.join(inner)})"[:_LONGEST]
    if hasattr(value, "__qualname__"):
        return _path_of(value)
    try:
        text = repr(value)[:_LONGEST]
    except Exception:  # of the user's class
        text = ""
    return text if text and " at 0x" not in text else _path_of(type(value))  # no addresses


def _path_of(named: Any) -> str:
    module = getattr(named, "__module__", None)
    return f"{module}.{named.__qualname__}" if module else str(named.__qualname__)


def _change(value: Any, plain: Any) -> str | None:
    """Return as what a value is stored, if that is used unlike it; of a container, the first."""
    kind = type(value)
    if kind in (dict, OrderedDict):
        pairs = zip(value.values(), plain.values(), strict=False)
        return next((found for pair in pairs if (found := _change(*pair)) is not None), None)
    if kind in (list, tuple):
        pairs = zip(value, plain, strict=True)
        return next((found for pair in pairs if (found := _change(*pair)) is not None), None)
    if isinstance(value, Enum):
        return f"{kind.__name__} as {plain!r}"
    if type(plain) is kind or isinstance(value, _USED_ALIKE):
        return None
    stored = {dict: "a dict", list: "a list", Tensor: "a tensor"}.get(type(plain), "text")
    return f"{kind.__name__} as {stored}"
