"""Options that are checked or resolved before the run: checkpoints, Trainer flags, run names."""

from __future__ import annotations

import inspect
import os
import re
from argparse import SUPPRESS
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import yaml
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.cli import LightningArgumentParser
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger

from fedlightning.cli.diagnostics.suggestions import find_class
from fedlightning.engine.checks.trainer_flags import UNSUPPORTED_FLAGS, check_trainer_flags
from fedlightning.errors import CheckpointError, ConfigError
from fedlightning.storage.checkpoint_io import checkpoint_at, has_checkpoint, latest_checkpoint
from fedlightning.storage.checkpoint_reader import check_local

__all__ = [
    "HIDDEN_FLAGS",
    "add_trainer_arguments",
    "check_logger_names",
    "find_checkpoint",
    "hidden_flag",
    "naming_accelerator",
    "plain_values_only",
]


def find_checkpoint(given: str | os.PathLike[str] | None, command: str, root: Path) -> str | None:
    """Return the checkpoint to load, ``None`` to train from the start.

    Args:
        given: A file, a run folder, ``last`` (the newest run's), ``auto`` (the same if there is
            one) or ``hpc`` (Lightning's own for a requeued job).
        command: The command that loads it.
        root: The folder that holds ``lightning_logs``.

    Raises:
        ConfigError: The command needs a checkpoint and got none.
        CheckpointError: The file does not exist, is empty or is not on this machine.
    """
    if given in (None, ""):
        if command == "fit":
            return None
        raise ConfigError(
            f"{command} needs a trained model: pass --ckpt_path FILE, or --ckpt_path last for the "
            "newest run's."
        )
    check_local(given)
    if given == "hpc":
        return "hpc"
    if given == "auto" and command == "fit" and not has_checkpoint(root):
        return None
    if given in ("last", "auto"):
        return str(latest_checkpoint(root))
    path = Path(os.fspath(given))
    if given == "best" and not path.exists():
        raise ConfigError(
            "ckpt_path='best' is known only during a run: pass the file's path, or 'last'."
        )
    path = checkpoint_at(path)
    if not path.is_file():
        raise CheckpointError(
            f"ckpt_path={str(path)!r}: no such file; `last` finds the newest run's."
        )
    if path.stat().st_size == 0:
        raise CheckpointError(f"ckpt_path={str(path)!r} is empty: writing it was interrupted.")
    return str(path)


def plain_values_only(method: Callable[..., Any]) -> dict[str, Any]:
    """Return the argument that keeps a checkpoint from running code, if Lightning has it.

    Args:
        method: ``fit``, ``validate``, ``test`` or ``predict`` of Lightning's Trainer.
    """
    return {"weights_only": True} if "weights_only" in inspect.signature(method).parameters else {}


HIDDEN_FLAGS = ("federation", "use_distributed_sampler", "model_registry", *UNSUPPORTED_FLAGS)
"""Flags without federated meaning, without use on the command line, or set by the trainer."""


def hidden_flag(name: str) -> Callable[[Any], Any]:
    """Return the type of a flag that Lightning's configs contain and that must keep its default."""

    def check(value: Any) -> Any:
        if name == "federation":
            raise ConfigError(
                "trainer.federation is not a setting: federation is a top-level key, as in "
                "federation.algorithm."
            )
        parsed = yaml.safe_load(value) if isinstance(value, str) else value
        check_trainer_flags({name: parsed})
        return parsed

    return check


def add_trainer_arguments(
    parser: LightningArgumentParser, kind: type[pl.Trainer] | Callable[..., pl.Trainer]
) -> None:
    """Add the trainer's arguments to a parser; flags without federated meaning are hidden.

    Args:
        parser: The parser.
        kind: The trainer's class, or what makes one.
    """
    for name in HIDDEN_FLAGS:
        parser.add_argument(
            f"--trainer.{name}", type=hidden_flag(name), default=SUPPRESS, help=SUPPRESS
        )
    parser.add_class_arguments(
        kind,
        "trainer",
        skip=set(HIDDEN_FLAGS),
        instantiate=False,
        fail_untyped=False,
        sub_configs=True,
    )


@contextmanager
def naming_accelerator(accelerator: Any) -> Iterator[None]:
    """Say what to set where Lightning does not find the accelerator of a trainer.

    Args:
        accelerator: ``trainer.accelerator``.

    Raises:
        ConfigError: Instead of Lightning's error.
    """
    try:
        yield
    except MisconfigurationException as error:
        if not re.search("accelerator is not available|No supported gpu backend", str(error)):
            raise
        raise ConfigError(
            f"trainer.accelerator={accelerator}: no GPU or other accelerator of that kind is "
            "available here; set trainer.accelerator to auto or cpu."
        ) from error


def check_logger_names(loggers: Any) -> None:
    """Refuse a logger name that points outside its folder.

    Args:
        loggers: The value of ``trainer.logger`` in the config.

    Raises:
        ConfigError: A name or a version contains a path separator.
    """
    for logger in loggers if isinstance(loggers, list) else [loggers]:
        spec = vars(logger) if hasattr(logger, "__dict__") else logger
        if not isinstance(spec, Mapping) or not isinstance(spec.get("class_path"), str):
            continue
        kind = find_class(spec["class_path"])
        if kind is None or not issubclass(kind, (CSVLogger, TensorBoardLogger)):
            continue
        for key in ("name", "version", "sub_dir"):
            value = (spec.get("init_args") or {}).get(key)
            if isinstance(value, str) and (value == ".." or {"/", "\\"} & set(value)):
                raise ConfigError(
                    f"trainer.logger.{key}={value!r}: path separators are not allowed in a run's "
                    "name; set trainer.default_root_dir to choose the folder."
                )
