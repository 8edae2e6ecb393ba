"""Whether a module can take the clients' data: asked with two examples, before the first round."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

from fedlightning.core.module_snapshot import WholeModule
from fedlightning.core.overrides import overrides
from fedlightning.core.tracebacks import place_of
from fedlightning.datamodules import FederatedDataModule, Split
from fedlightning.datamodules.pooled import PooledData
from fedlightning.engine.checks.trial_step import lone_text
from fedlightning.engine.evaluation import ClientEvaluator
from fedlightning.engine.resident import LIGHTNING_ATTRIBUTES
from fedlightning.errors import ConfigError, DataError, FederationError, FedLightningError
from fedlightning.models.base import FederatedModule

__all__ = [
    "check_fit",
    "check_initialised",
    "check_lone_examples",
    "check_module",
    "trains_by_forward",
]

_USUAL_SIZES = (28, 32, 8, 16, 24, 48, 64, 84, 96, 128, 224, 256)


def check_module(
    trainer: pl.Trainer,
    module: pl.LightningModule,
    data: FederatedDataModule,
    evaluator: ClientEvaluator,
) -> None:
    """Show the module two examples of a client before it is trained on thousands.

    Args:
        trainer: The trainer, for its precision.
        module: A module on its device that :func:`trains_by_forward`.
        data: The clients' data.
        evaluator: Gives a client's batches as the module gets them.

    Raises:
        ConfigError: See :func:`check_fit`.
        FederationError: The client's batch cannot be made.
        DataError: See :func:`check_fit` and :func:`check_lone_examples`.
    """
    # data that are made when asked for are not made for all clients just to be counted
    pooled = data.client_data if isinstance(data.client_data, PooledData) else None
    splits = pooled.splits if pooled is not None else None
    first = data.only_client or 0
    largest = int(splits.sizes("train").argmax()) if splits is not None else first
    batch = _first_batch(evaluator, largest)
    _check_pair(module, batch)
    if not (isinstance(batch, (tuple, list)) and isinstance(batch[0], Tensor)):
        return
    with trainer.precision_plugin.forward_context():
        labels = batch[1] if len(batch) == 2 else None
        lowest = pooled.lowest_label if pooled is not None else 0
        check_fit(module, batch[0][:2], data.num_classes, labels, lowest)
        if splits is not None and not overrides(module, "test_step", FederatedModule):
            _check_test_inputs(module, batch[0], splits.sizes("test"), evaluator)
        if splits is not None and not data.drop_last and trainer.limit_train_batches == 1.0:
            check_lone_examples(module, batch[0], splits.sizes("train"), data.batch_size)


def _check_pair(module: pl.LightningModule, batch: Any) -> None:
    """Refuse a batch that the default training step cannot take apart.

    Raises:
        DataError: It is not a pair of inputs and labels.
    """
    name = type(module).__name__
    own = f"or give {name} a training_step and a test_step of its own"
    if isinstance(batch, Mapping):
        keys = ", ".join(map(str, batch))
        raise DataError(
            f"{name} trains on (inputs, labels), the data yields mappings with {keys}: name "
            f"data.input_key and data.label_key, {own}."
        )
    if isinstance(batch, Tensor):
        raise DataError(
            f"{name} trains on (inputs, labels), the data has no labels; pass some, {own}."
        )
    if isinstance(batch, (tuple, list)) and len(batch) == 2 and isinstance(batch[1], Mapping):
        keys = ", ".join(map(str, batch[1]))
        raise DataError(f"{name}'s cross-entropy cannot take several labels ({keys}); {own[3:]}.")


def _check_test_inputs(
    module: pl.LightningModule, trained_on: Tensor, sizes: np.ndarray, evaluator: ClientEvaluator
) -> None:
    """Refuse test examples of another shape, if the module cannot take them."""
    if not sizes.any():
        return
    client = int(sizes.argmax())
    batch = _first_batch(evaluator, client, "test")
    if not (isinstance(batch, (tuple, list)) and isinstance(batch[0], Tensor)):
        return
    if batch[0].shape[1:] == trained_on.shape[1:] and batch[0].dtype == trained_on.dtype:
        return
    try:
        check_fit(module, batch[0][:2], num_classes=0)
    except DataError as error:
        raise DataError(f"client {client}, test data: {error}") from error.__cause__


def check_initialised(module: nn.Module) -> None:
    """Refuse a module with lazy layers that have not seen an example yet.

    Raises:
        ConfigError: There is one; the message says how to show it an example.

    Example:
        >>> check_initialised(nn.Linear(2, 3))
    """
    tensors = (*module.named_parameters(), *module.named_buffers())
    lazy = next((name for name, tensor in tensors if is_lazy(tensor)), None)
    if lazy is not None:
        name = type(module).__name__
        raise ConfigError(
            f"{lazy} of {name} is lazy and uninitialized, so there is no global model to send to "
            f"the clients; show it an example in {name}.configure_model(): "
            "self.forward(torch.zeros(1, ...)), or give the layer its sizes."
        )


def trains_by_forward(module: pl.LightningModule) -> bool:
    """Whether ``training_step`` is known to hand inputs to ``forward`` and labels to the loss."""
    return isinstance(module, FederatedModule) and not overrides(
        module, "training_step", FederatedModule
    )


def check_fit(
    module: pl.LightningModule,
    inputs: Tensor,
    num_classes: int,
    labels: Any = None,
    lowest: int = 0,
) -> None:
    """Refuse a module that cannot take the data, or has fewer outputs than there are classes.

    Args:
        module: A module that :func:`trains_by_forward`; it stays as it is.
        inputs: Some of a client's inputs, ready for the module, shape (n, ...).
        num_classes: Number of classes; 0 for data without classes.
        labels: The batch's labels, if it has any.
        lowest: The lowest label of the data.

    Raises:
        DataError: ``forward`` fails on the inputs, or cross-entropy cannot take the labels.
        ConfigError: There are too few outputs.

    Example:
        >>> from fedlightning.models import MLP
        >>> check_fit(MLP(in_features=4, num_classes=2), torch.zeros(2, 4), num_classes=3)
        Traceback (most recent call last):
        fedlightning.errors.ConfigError: MLP has 2 outputs, the data has 3 classes; ...
    """
    name = type(module).__name__
    with _left_as_it_is(module):
        module.eval()
        try:
            outputs = module(inputs)
        except Exception as error:
            raise DataError(_mismatch(module, inputs, error)) from error
    if not isinstance(outputs, Tensor) or outputs.ndim != 2:
        return
    if isinstance(labels, Tensor) and (fault := _label_fault(labels, outputs.shape[1])):
        raise DataError(f"{name}'s cross-entropy cannot take {fault}.")
    if outputs.shape[1] < num_classes:
        if lowest and outputs.shape[1] == num_classes - lowest:
            raise DataError(
                f"{name} has {outputs.shape[1]} outputs, the highest label is {num_classes - 1}: "
                f"labels start at {lowest}; subtract {lowest} from them."
            )
        raise ConfigError(
            f"{name} has {outputs.shape[1]} outputs, the data has {num_classes} classes; "
            f"set model.num_classes={num_classes}, or build the head with as many outputs."
        )


def _label_fault(labels: Tensor, num_classes: int) -> str | None:
    """Return which labels cross-entropy cannot take beside logits of shape (n, classes)."""
    shape = ", ".join(["n", *map(str, labels.shape[1:])]) + ("," if labels.ndim == 1 else "")
    found = f"{str(labels.dtype).removeprefix('torch.')} labels of shape ({shape})"
    if labels.is_floating_point():
        probabilities = labels.shape[1:] == (num_classes,)
        own = "a regression needs a training_step and a test_step of its own"
        return None if probabilities else f"{found}; pass int64 classes of shape (n,): {own}"
    if labels.ndim != 1:
        cure = "labels[:, 0]" if labels.shape[1:] == (1,) else "int64 classes of shape (n,)"
        return f"{found}; pass {cure}"
    taken = labels.dtype in (torch.int64, torch.uint8)
    return None if taken else f"{found}; pass int64 classes"


def check_lone_examples(
    module: pl.LightningModule, inputs: Tensor, sizes: Sequence[int] | np.ndarray, batch_size: int
) -> None:
    """Refuse a client whose last batch is a single example, where BatchNorm cannot train on one.

    Args:
        module: A module that :func:`trains_by_forward`; it stays as it is.
        inputs: At least one input, ready for the module.
        sizes: Number of training examples of every client.
        batch_size: Examples a batch; a shorter last one is kept.

    Raises:
        DataError: There is such a client.
    """
    lone = np.flatnonzero(np.asarray(sizes) % batch_size == (1 if batch_size > 1 else 0))
    normalises = any(isinstance(child, _BatchNorm) for child in module.modules())
    if not lone.size or not normalises:
        return
    with _left_as_it_is(module):
        module.train()
        try:
            module(inputs[:1])
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            client = int(lone[0])
            raise DataError(lone_text(client, int(sizes[client]), module)) from error


def _first_batch(evaluator: ClientEvaluator, client: int, split: Split = "train") -> Any:
    """Return a client's first batch: code of the user's own makes it, and may fail."""
    try:
        return next(evaluator.batches(client, split), None)
    except (FedLightningError, MemoryError, torch.cuda.OutOfMemoryError):
        raise
    except Exception as error:
        text = f"{type(error).__name__}: {error}{place_of(error)}"
        raise FederationError(f"client {client}, its first batch: {text}") from error


@contextmanager
def _left_as_it_is(module: nn.Module) -> Iterator[None]:
    """Put back the module and the random streams afterwards."""
    before = WholeModule(module, LIGHTNING_ATTRIBUTES)
    devices = [parameter.device for parameter in module.parameters() if parameter.is_cuda][:1]
    try:
        with torch.no_grad(), torch.random.fork_rng(devices):
            yield
    finally:
        before.restore()


def _mismatch(module: pl.LightningModule, inputs: Tensor, error: Exception) -> str:
    name, got = type(module).__name__, _shown(inputs.shape[1:])
    accepted = _accepted_shape(module, inputs)
    if accepted is not None and accepted != inputs.shape[1:]:
        return f"{name} expected {_shown(accepted)}, got {got}: that is what one input of data is."
    text = str(error).partition("\n")[0]
    return f"{name} cannot take inputs of shape {got}: {type(error).__name__}: {text}"


def _accepted_shape(module: pl.LightningModule, inputs: Tensor) -> tuple[int, ...] | None:
    """Return the shape of one input that the module does take, if one of the usual ones is it."""
    shapes: list[tuple[int, ...]]
    first = next((c for c in module.modules() if isinstance(c, (nn.Conv2d, nn.Linear))), None)
    if isinstance(first, nn.Conv2d):
        shapes = [(first.in_channels, size, size) for size in _USUAL_SIZES]
    elif isinstance(first, nn.Linear):
        shapes = [(first.in_features,)]
    else:
        return None
    example = getattr(module, "example_input_array", None)
    if isinstance(example, Tensor):
        shapes.insert(0, tuple(example.shape[1:]))
    return next((shape for shape in shapes if _takes(module, inputs, shape)), None)


def _takes(module: nn.Module, inputs: Tensor, shape: tuple[int, ...]) -> bool:
    try:
        module(inputs.new_zeros(2, *shape))
    except Exception:
        return False
    return True


def _shown(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape))  # noqa: RUF001
