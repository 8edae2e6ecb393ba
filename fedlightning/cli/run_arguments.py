"""Which file ``--ckpt_path`` means, and how it is loaded."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger

from fedlightning.cli.diagnostics.suggestions import find_class
from fedlightning.engine.checks.inputs import check_local
from fedlightning.engine.checks.trainer_flags import UNSUPPORTED_FLAGS, check_trainer_flags
from fedlightning.errors import CheckpointError, ConfigError
from fedlightning.storage.checkpoint_io import good_checkpoint, latest_checkpoint
from fedlightning.storage.run_layout import CHECKPOINTS, LAST_CHECKPOINT, PREVIOUS_CHECKPOINT

__all__ = [
    "HIDDEN_FLAGS",
    "find_checkpoint",
    "hidden_flag",
    "plain_values_only",
    "refuse_paths_in_names",
]


def find_checkpoint(given: str | os.PathLike[str] | None, command: str, root: Path) -> str | None:
    """Return the checkpoint to load, ``None`` to train from the start.

    Args:
        given: A file, a run folder, ``last`` (the newest run's) or ``hpc`` (Lightning's own for a
            requeued job).
        command: What is to be done with it.
        root: The folder that holds ``lightning_logs``.

    Raises:
        ConfigError: A command that needs a trained model gets none.
        CheckpointError: There is no such file.
    """
    if given in (None, ""):
        if command == "fit":
            return None
        raise ConfigError(
            f"{command} needs a trained model: give --ckpt_path FILE, or --ckpt_path last for the "
            "newest run's."
        )
    check_local(given)
    if given == "hpc":
        return "hpc"
    if given == "last":
        return str(latest_checkpoint(root))
    path = Path(os.fspath(given))
    if given == "best" and not path.exists():
        raise ConfigError(
            "ckpt_path='best' is known only while a run lasts: give the file's path, or 'last'."
        )
    if path.is_dir():
        for folder in (path / CHECKPOINTS, path):
            if any((folder / name).is_file() for name in (LAST_CHECKPOINT, PREVIOUS_CHECKPOINT)):
                return str(good_checkpoint(folder))
        raise CheckpointError(
            f"ckpt_path={str(path)!r} is a folder with no checkpoint in it: neither "
            "checkpoints/last.ckpt nor last.ckpt."
        )
    if not path.is_file():
        raise CheckpointError(
            f"ckpt_path={str(path)!r}: there is no such file; `last` finds the newest run's."
        )
    if path.stat().st_size == 0:
        raise CheckpointError(f"ckpt_path={str(path)!r} is empty: its writing was cut short.")
    return str(path)


def plain_values_only(method: Callable[..., Any]) -> dict[str, Any]:
    """Return the argument that keeps a checkpoint from running code, where Lightning has it.

    Args:
        method: ``fit``, ``validate``, ``test`` or ``predict`` of Lightning's Trainer.
    """
    return {"weights_only": True} if "weights_only" in inspect.signature(method).parameters else {}


HIDDEN_FLAGS = ("federation", "use_distributed_sampler", "model_registry", *UNSUPPORTED_FLAGS)
"""Without federated meaning, of no use here, or set by the trainer itself."""


def hidden_flag(name: str) -> Callable[[Any], Any]:
    """Return the type of a flag that may be given, as in Lightning's configs, but not changed."""

    def check(value: Any) -> Any:
        if name == "federation":
            raise ConfigError(
                "trainer.federation is no setting: federation stands at the top, as in "
                "federation.algorithm."
            )
        parsed = yaml.safe_load(value) if isinstance(value, str) else value
        check_trainer_flags({name: parsed})
        return parsed

    return check


def refuse_paths_in_names(loggers: Any) -> None:
    """Refuse a logger's name that leads out of its folder.

    Args:
        loggers: What the config says of ``trainer.logger``.

    Raises:
        ConfigError: A name or a version has a path separator in it.
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
                    "name; trainer.default_root_dir says where runs are."
                )
