"""Checks of the arguments of ``fit``, ``test`` and the others, before anything is created."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import pytorch_lightning as pl

from fedlightning.core.validation import check_instance, other_lightning
from fedlightning.datamodules import FederatedDataModule
from fedlightning.errors import CheckpointError, ConfigError

__all__ = ["check_inputs", "check_local", "check_training_data"]


def check_inputs(model: Any, data: Iterable[Any], ckpt_path: Any) -> None:
    """Refuse classes instead of objects, objects of the package ``lightning``, and URLs.

    Args:
        model: The module; ``None`` means the trainer's own.
        data: Data modules and loaders.
        ckpt_path: Path or name of the checkpoint.

    Raises:
        ConfigError: The model or the data is refused.
        CheckpointError: The path is refused.
    """
    if model is not None:
        compiled = getattr(model, "_orig_mod", None)  # what torch.compile wraps
        check_instance("model", model if compiled is None else compiled, pl.LightningModule)
    for given in data:
        if isinstance(given, type) or other_lightning(given):
            check_instance("datamodule", given, FederatedDataModule)
    check_local(ckpt_path)


def check_training_data(data: Any) -> None:
    """Refuse training data without clients.

    Raises:
        ConfigError: It is not a FederatedDataModule.
    """
    if data is not None and not isinstance(data, FederatedDataModule):
        raise ConfigError(
            f"{type(data).__name__} does not say which client has which examples; pass a "
            "FederatedDataModule as `datamodule`. For arrays or Datasets see FederatedArrays and "
            "ClientDatasets in fedlightning.datamodules."
        )


def check_local(ckpt_path: Any) -> None:
    """Refuse a checkpoint that is not on this machine.

    Raises:
        CheckpointError: The path is a URL.

    Example:
        >>> check_local("s3://bucket/last.ckpt")
        Traceback (most recent call last):
        fedlightning.errors.CheckpointError: ckpt_path='s3://bucket/last.ckpt': remote paths are ...
    """
    text = "" if ckpt_path is None else str(ckpt_path)
    if re.match(r"[A-Za-z][\w+.-]+:/", text):  # a Path drops a slash; a drive is one letter
        raise CheckpointError(
            f"ckpt_path={text!r}: remote paths are not read; download the file and pass its path."
        )
