"""TensorBoard events in the run folder."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Mapping
from typing import Any

from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from pytorch_lightning.utilities import rank_zero_only

__all__ = ["TensorBoardBeside"]

_RESULTS = ("global/acc", "global/loss", "personalized/acc")


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

    @rank_zero_only
    def log_hyperparams(self, params: Any, metrics: Any = None, step: int | None = None) -> None:
        """Log hyperparameters, also for the table of TensorBoard, beside the results so far.

        Lightning does the latter only together with a first value of a metric.
        """
        super().log_hyperparams(params, metrics, step)
        writer = self.experiment.file_writer
        if metrics is not None or not params or writer is None:  # closed: they have been logged
            return
        from torch.utils.tensorboard.summary import hparams

        given = vars(params) if isinstance(params, Namespace) else params
        plain = (bool, int, float, str)
        shown = {key: v if isinstance(v, plain) else str(v) for key, v in given.items()}
        make: Callable[..., Any] = hparams  # untyped
        for summary in make(shown, dict.fromkeys(_RESULTS)):
            writer.add_summary(summary)

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log a round's metrics without Lightning's ``epoch``, which equals the step."""
        super().log_metrics({k: v for k, v in metrics.items() if k != "epoch"}, step)
