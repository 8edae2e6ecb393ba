"""Names of runs: a logger's, which becomes part of a folder's path."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger

from fedlightning.cli.diagnostics.suggestions import find_class
from fedlightning.errors import ConfigError

__all__ = ["refuse_paths_in_names"]


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
