"""Checks of the arguments of ``fit``, ``test`` and the others, before anything is created."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

import pytorch_lightning as pl

from fedlightning.core.arguments import unknown_argument
from fedlightning.core.overrides import overrides
from fedlightning.core.validation import check_instance, other_lightning
from fedlightning.datamodules import FederatedDataModule
from fedlightning.errors import ConfigError
from fedlightning.storage.checkpoint_reader import check_local

__all__ = ["check_call", "check_inputs", "check_training", "check_training_data"]


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
    if isinstance(model, pl.LightningDataModule):
        raise ConfigError(
            f"model must be a LightningModule, got the data module {type(model).__name__}: the "
            "model comes first, then datamodule=..."
        )
    if model is not None:
        compiled = getattr(model, "_orig_mod", None)  # what torch.compile wraps
        check_instance("model", model if compiled is None else compiled, pl.LightningModule)
    for given in data:
        if isinstance(given, type) or other_lightning(given):
            check_instance("datamodule", given, FederatedDataModule)
    check_local(ckpt_path)


def check_call(name: str, given: Iterable[str]) -> None:
    """Refuse a keyword that a method of the Trainer does not have.

    Raises:
        ConfigError: There is one; the message says what was probably meant.

    Example:
        >>> check_call("test", ["datamodul"])
        Traceback (most recent call last):
        fedlightning.errors.ConfigError: FederatedTrainer.test has no setting 'datamodul'. Did ...
    """
    known = list(inspect.signature(getattr(pl.Trainer, name)).parameters)[1:]
    if (unknown := next((key for key in given if key not in known), None)) is not None:
        raise ConfigError(unknown_argument(f"FederatedTrainer.{name}", unknown, known))


def check_training(model: pl.LightningModule) -> None:
    """Refuse a module that says nothing of how it is trained.

    Raises:
        ConfigError: It lacks ``training_step`` or ``configure_optimizers``.
    """
    check_instance("model", model, pl.LightningModule)
    needed = {"training_step": "the loss of a batch", "configure_optimizers": "an optimizer"}
    for hook, what in needed.items():
        if not overrides(model, hook, pl.LightningModule):
            raise ConfigError(
                f"{type(model).__name__} has no {hook}: write one that returns {what}, or derive "
                "the module from FederatedModule, which has one."
            )


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
