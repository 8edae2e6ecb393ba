"""`PredictionWriter`: every test example with its client, label, prediction and probability."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from fedlightning.core.arguments import NamedArguments
from fedlightning.core.client_names import NAME_COLUMN
from fedlightning.datamodules import FederatedDataModule
from fedlightning.errors import ConfigError, DataError
from fedlightning.storage.csv_files import write_csv
from fedlightning.storage.run_layout import PREDICTIONS

__all__ = ["PredictionWriter"]

_COLUMNS = ("client_id", "sample", "label", "prediction", "probability")


class PredictionWriter(NamedArguments, pl.Callback):
    """Writes ``predictions.csv`` in ``Trainer.predict``, one row per test example.

    ``predict_step`` may return probabilities or logits, both of shape (batch, classes), or one
    prediction per example, of shape (batch,). ``sample`` indexes the pooled test examples of all
    clients, as :meth:`FederatedDataModule.predict_index` does. ``label`` is empty for data without
    labels, ``probability`` where the module returns none. ``client_name`` is the last column where
    clients have names.

    Args:
        filename: The file's name in the run folder.

    Raises:
        ConfigError: ``predict_step`` returns something else.
    """

    def __init__(self, filename: str = PREDICTIONS) -> None:
        self.filename = filename
        self._predictions: list[Tensor] = []
        self._probabilities: list[Tensor] = []

    def on_predict_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forget earlier predictions."""
        self._predictions, self._probabilities = [], []

    def on_predict_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep a batch's predictions: two numbers per example."""
        if not isinstance(outputs, Tensor) or outputs.ndim not in (1, 2):
            shape = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
            raise ConfigError(
                f"{type(pl_module).__name__}.predict_step must return a tensor of shape "
                f"(batch, classes) or (batch,) for {self.filename}, got {shape}."
            )
        outputs = outputs.detach().float().cpu() if outputs.is_floating_point() else outputs.cpu()
        if outputs.ndim == 1:
            self._predictions.append(outputs)
            self._probabilities.append(torch.full((len(outputs),), torch.nan))
            return
        top, classes = _probabilities(outputs).max(dim=1)
        self._predictions.append(classes)
        self._probabilities.append(top)

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the file; print its path and the accuracy."""
        data = getattr(trainer, "datamodule", None)
        folder = trainer.log_dir  # a broadcast, so all ranks must take part
        if not isinstance(data, FederatedDataModule) or not self._predictions:
            return
        if not trainer.is_global_zero or folder is None:
            return
        predictions = torch.cat(self._predictions).numpy()
        probabilities = torch.cat(self._probabilities).numpy()
        index = data.predict_index()[: len(predictions)]
        labels = _labels(data, len(predictions))
        path = Path(folder) / self.filename
        names = data.client_names
        columns = _COLUMNS if names is None else (*_COLUMNS, NAME_COLUMN)
        write_csv(path, columns, _rows(index, labels, predictions, probabilities, names))
        print(f"{len(predictions):,} predictions: {path}")
        if labels is not None and predictions.dtype.kind in "iu":
            right = float((labels == predictions).mean())
            print(f"accuracy of the global model: {100 * right:.1f} %")


def _probabilities(outputs: Tensor) -> Tensor:
    """Return outputs of shape (batch, classes) if they sum to one, else their softmax."""
    sums = outputs.sum(dim=1)
    if outputs.min() >= 0 and torch.allclose(sums, torch.ones_like(sums), atol=1e-3):
        return outputs
    return outputs.softmax(dim=1)


def _labels(data: FederatedDataModule, count: int) -> np.ndarray | None:
    try:
        by_client = [data.labels(client, "test") for client in data.evaluated_clients]
    except DataError:
        return None
    labels = np.concatenate(by_client)[:count]
    return labels if labels.ndim == 1 else None


def _rows(
    index: np.ndarray,
    labels: np.ndarray | None,
    predictions: np.ndarray,
    probabilities: np.ndarray,
    names: Sequence[str] | None,
) -> Iterator[tuple[Any, ...]]:
    shown = [""] * len(predictions) if labels is None else labels.tolist()
    rows = zip(index.tolist(), shown, predictions.tolist(), probabilities.tolist(), strict=True)
    for (client, sample), label, prediction, probability in rows:
        certainty = "" if probability != probability else f"{probability:.6g}"
        named = () if names is None else (names[client],)
        yield client, sample, label, prediction, certainty, *named
