"""TensorBoard events in the run folder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger

__all__ = ["TensorBoardBeside"]


class TensorBoardBeside(TensorBoardLogger):
    """A TensorBoardLogger that writes into the folder of a CSVLogger.

    Args:
        csv: The logger whose folder is the run folder.
    """

    def __init__(self, csv: CSVLogger) -> None:
        super().__init__(save_dir=csv.save_dir, name=csv.name, version=0, default_hp_metric=False)
        self._csv = csv

    @property
    def version(self) -> int | str:
        """The CSV logger's version."""
        return self._csv.version

    @property
    def log_dir(self) -> str:
        """The CSV logger's folder."""
        return self._csv.log_dir

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log a round's metrics without Lightning's ``epoch``, which equals the step."""
        super().log_metrics({k: v for k, v in metrics.items() if k != "epoch"}, step)
