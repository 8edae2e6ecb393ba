"""What ``fit``, ``test`` and the others are called with, checked before anything is made."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import pytorch_lightning as pl

from fedlightning.core.validation import check_instance, is_of_lightning
from fedlightning.datamodules import FederatedDataModule
from fedlightning.errors import CheckpointError, ConfigError

__all__ = ["check_inputs", "check_local", "check_training_data"]


def check_inputs(model: Any, data: Iterable[Any], ckpt_path: Any) -> None:
    """Refuse classes in the place of objects, objects of the package ``lightning``, and URLs.

    Args:
        model: The module, ``None`` for the one that the trainer has.
        data: Data modules and loaders.
        ckpt_path: The checkpoint's path or name.

    Raises:
        ConfigError: From the model or the data.
        CheckpointError: From the path.
    """
    if model is not None:
        compiled = getattr(model, "_orig_mod", None)  # what torch.compile wraps
        check_instance("model", model if compiled is None else compiled, pl.LightningModule)
    for given in data:
        if isinstance(given, type) or is_of_lightning(given):
            check_instance("datamodule", given, FederatedDataModule)
    check_local(ckpt_path)


def check_training_data(data: Any) -> None:
    """Refuse training data that does not say which examples are whose.

    Raises:
        ConfigError: It is something else than a data module of clients.
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
    if re.match(r"[A-Za-z][\w+.-]+:/", text):  # a Path has one slash left, a drive one letter
        raise CheckpointError(
            f"ckpt_path={text!r}: remote paths are not read; download the file and pass its path."
        )
