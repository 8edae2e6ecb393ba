"""Names to suggest: classes and their settings."""

from __future__ import annotations

import importlib
import inspect
import sys
import typing
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pytorch_lightning as pl
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from fedlightning.core.description import setting_names
from fedlightning.datamodules import FederatedDataModule
from fedlightning.errors import did_you_mean, nearest
from fedlightning.federation.settings import Federation
from fedlightning.models.base import FederatedModule

__all__ = ["expected_classes", "find_class", "nearest_option", "subclass_names"]

_CLASSES: dict[str, type] = {
    "model": pl.LightningModule,
    "data": FederatedDataModule,
    "optimizer": Optimizer,
    "lr_scheduler": LRScheduler,
}
_GROUPS: dict[str, type] = {"federation": Federation, "trainer": pl.Trainer}
_LIBRARIES = {"fedlightning", "lightning_fabric", "pytorch_lightning", "torch", "torchmetrics"}


def find_class(path: str) -> type | None:
    """Return the class of an import path, ``None`` if there is none."""
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception:
        return None
    return found if isinstance(found, type) else None


def subclass_names(bases: Sequence[type]) -> list[str]:
    """Return the names of the classes that can be used where one of ``bases`` is expected.

    Example:
        >>> from fedlightning.datamodules import Partition
        >>> {"Shards", "Dirichlet"} <= set(subclass_names([Partition]))
        True
    """
    found = {cls for base in bases for cls in _subclasses(base)} - {FederatedModule}
    usable = {
        cls for cls in found if not cls.__name__.startswith("_") and not inspect.isabstract(cls)
    }
    return sorted({cls.__name__ for cls in set(filter(_is_offered, usable)) or usable})


def expected_classes(keys: Sequence[str], owner: str | None) -> list[type]:
    """Return the classes that a setting accepts.

    Args:
        keys: The setting.
        owner: Import path of the class that has the setting, ``None`` for a top-level one.
    """
    path = [part.partition("[")[0] for key in keys for part in key.split(".")]
    if owner is None and path[0] in _CLASSES:
        return [_CLASSES[path[0]]]
    holder = _GROUPS.get(path[0]) if owner is None else find_class(owner)
    return list(dict.fromkeys(_classes(_annotation(holder, path[-1])))) if holder else []


def nearest_option(given: str, options: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for an option of the command line, or an empty string.

    Example:
        >>> nearest_option("max_epoch", ["trainer.max_epochs", "trainer.max_steps"])
        " Did you mean 'trainer.max_epochs'?"
    """
    names = [*options, *(f"data.{name}" for name in setting_names(FederatedDataModule))]
    names += [f"model.{name}" for name in setting_names(FederatedModule)]
    if near := did_you_mean(given, names):
        return near
    leaves = {name.rpartition(".")[2]: name for name in reversed(names)}
    leaf = nearest(given.rpartition(".")[2], leaves)
    return f" Did you mean '{leaves[leaf]}'?" if leaf is not None else ""


def _subclasses(base: type) -> Iterator[type]:
    children: list[type] = base.__subclasses__()
    for child in children:
        yield child
        yield from _subclasses(child)


def _is_offered(cls: type) -> bool:
    """Whether a library exports a class from a package above its module; users' classes count."""
    parts = cls.__module__.split(".")
    if parts[0] not in _LIBRARIES:
        return True
    above = (".".join(parts[:length]) for length in range(1, len(parts)))
    return any(getattr(sys.modules.get(name), cls.__name__, None) is cls for name in above)


def _annotation(holder: type, name: str) -> Any:
    for cls in inspect.getmro(holder):
        init = vars(cls).get("__init__")
        if init is None or name not in inspect.signature(init).parameters:
            continue
        try:
            return typing.get_type_hints(init).get(name)
        except Exception:
            return None
    return None


def _classes(hint: Any) -> Iterator[type]:
    if isinstance(hint, type) and hint.__module__ != "builtins":
        yield hint
    for argument in typing.get_args(hint):
        yield from _classes(argument)
