"""Checks of Trainer flags: names, flags without federated meaning, ranges."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pytorch_lightning as pl

from fedlightning import algorithms
from fedlightning.algorithms import Algorithm
from fedlightning.core.arguments import unknown_argument
from fedlightning.core.validation import is_integer, is_number, other_lightning
from fedlightning.errors import ConfigError
from fedlightning.federation.settings import Federation

__all__ = ["UNSUPPORTED_FLAGS", "algorithm_name", "check_trainer_flags", "check_trainer_names"]

UNSUPPORTED_FLAGS: Mapping[str, tuple[Any, str]] = {
    "overfit_batches": (
        0.0,
        "clients differ, so no single batch can be overfitted; set federation.cohort_size",
    ),
    "val_check_interval": (
        None,
        "validation runs at the end of a round; set trainer.check_val_every_n_epoch",
    ),
    "reload_dataloaders_every_n_epochs": (
        0,
        "clients' data is indexed anew every round anyway",
    ),
    "sync_batchnorm": (
        False,
        "clients do not share batches; use a norm layer without batch statistics",
    ),
    "barebones": (
        False,
        "a federated run needs its loggers; switch off single features",
    ),
}
"""For each flag its neutral value, and the reason why another is refused."""


def _whole(least: int, also: int | None = None) -> Callable[[Any], bool]:
    return lambda value: is_integer(value) and (value >= least or value == also)


def _finite(value: Any) -> bool:
    return is_number(value) and value >= 0


def _some_batches(value: Any) -> bool:
    return _whole(1)(value) or (isinstance(value, float) and 0 < value <= 1)


# Lightning accepts these, and trains on nothing, never ends, or fails in a client update.
_RANGES: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "max_epochs": (
        _whole(1, also=-1),
        "counts rounds and must be an integer >= 1 (or -1 for no limit)",
    ),
    "min_epochs": (_whole(0), "counts rounds and must be an integer >= 0"),
    "max_steps": (
        _whole(1, also=-1),
        "counts client updates and must be >= 1 (or -1 for any number)",
    ),
    "min_steps": (_whole(0), "counts client updates and must be an integer >= 0"),
    "gradient_clip_val": (_finite, "must be a finite number >= 0"),
    "accumulate_grad_batches": (_whole(1), "must be an integer >= 1"),
    "limit_train_batches": (_some_batches, "must be an integer >= 1 or a share in (0, 1]"),
    "check_val_every_n_epoch": (_whole(1), "counts rounds and must be >= 1"),
    "log_every_n_steps": (_whole(0), "counts rounds and must be an integer >= 0"),
    "num_sanity_val_steps": (_whole(-1), "must be an integer >= -1"),
}


def algorithm_name(value: Any) -> str | None:
    """Return the name of the algorithm that a value is, as object, class or name; else ``None``.

    Example:
        >>> from fedlightning import FedAvg
        >>> algorithm_name(FedAvg()), algorithm_name(FedAvg), algorithm_name("fedavg")
        ('FedAvg', 'FedAvg', 'FedAvg')
        >>> algorithm_name("ddp")
    """
    if isinstance(value, str):
        names = {name.lower(): name for name in algorithms.__all__ if _is_algorithm(name)}
        return names.get(value.lower())
    kind = value if isinstance(value, type) else type(value)
    return kind.__name__ if issubclass(kind, Algorithm) else None


def _is_algorithm(name: str) -> bool:
    named = getattr(algorithms, name)
    return isinstance(named, type) and issubclass(named, Algorithm)


def check_trainer_names(names: Iterable[str]) -> None:
    """Refuse arguments that the Trainer does not have.

    Raises:
        ConfigError: If there is one; the message says what was probably meant.

    Example:
        >>> check_trainer_names(["cohort_size"])  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        fedlightning.errors.ConfigError: FederatedTrainer has no setting 'cohort_size'; ...
    """
    known = [*inspect.signature(pl.Trainer).parameters, "federation"]
    if (unknown := next((name for name in names if name not in known), None)) is None:
        return
    if unknown in inspect.signature(Federation).parameters:
        raise ConfigError(
            f"FederatedTrainer has no setting {unknown!r}; it belongs to the federation: "
            f"FederatedTrainer(federation=Federation({unknown}=...))."
        )
    raise ConfigError(unknown_argument("FederatedTrainer", unknown, known))


def check_trainer_flags(flags: Mapping[str, Any]) -> None:
    """Refuse Trainer arguments that have no federated meaning, or are out of range.

    Raises:
        ConfigError: If there is one; the message says why.

    Example:
        >>> check_trainer_flags({"max_epochs": 3, "overfit_batches": 0})
        >>> check_trainer_flags({"max_epochs": 0})
        Traceback (most recent call last):
        fedlightning.errors.ConfigError: trainer.max_epochs counts rounds and must be ... got 0.
    """
    for name, (neutral, reason) in UNSUPPORTED_FLAGS.items():
        value = flags.get(name)
        if value not in (None, neutral) and not (name == "val_check_interval" and value == 1.0):
            raise ConfigError(f"trainer.{name}={value!r} has no federated meaning: {reason}.")
    for name, (fits, rule) in _RANGES.items():
        value = flags.get(name)
        if value is not None and not fits(value):
            raise ConfigError(f"trainer.{name} {rule}, got {value!r}.")
    least, most = flags.get("min_epochs"), flags.get("max_epochs")
    if least is not None and most is not None and 0 <= most < least:
        raise ConfigError(
            f"trainer.min_epochs={least} with trainer.max_epochs={most} can never be met; lower "
            "the former or raise the latter."
        )
    if (algorithm := algorithm_name(flags.get("strategy"))) is not None:
        raise ConfigError(
            f"trainer.strategy says how processes work together, and {algorithm} is an algorithm; "
            f"pass federation=Federation(algorithm={algorithm}(...))."
        )
    for flag in flags.keys() - {"callbacks", "logger"}:  # which say it themselves
        value = flags[flag]
        for each in value if isinstance(value, (list, tuple)) else (value,):
            if hint := other_lightning(each):
                raise ConfigError(f"trainer.{flag}: {type(each).__name__} is {hint}")
    root = flags.get("default_root_dir")
    if root is not None and "://" in str(root):
        raise ConfigError(
            f"trainer.default_root_dir={str(root)!r} is a URL, and runs are written to local "
            "folders only; mount it."
        )
