"""The results of a personalization, client by client, for a Trainer's loggers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.utilities import rank_zero_only

from fedlightning.core.main_metric import MainMetric
from fedlightning.core.views import file_in_view, metric_in_view
from fedlightning.reporting.client_records import ClientRecord, columns_of
from fedlightning.reporting.figures.save import clients_figure

__all__ = ["log_clients"]

# Equal bins: TensorBoard's own grow exponentially, and 90 % and 99 % would fall into one.
_ACCURACY_BINS = np.linspace(0, 1, 41)


@rank_zero_only
def log_clients(
    loggers: Iterable[Logger],
    records: Sequence[ClientRecord],
    step: int,
    view: str = "",
    metric: MainMetric | None = None,
) -> None:
    """Log every client's result where the logger supports it.

    TensorBoard gets the histograms ``initial/acc_per_client`` and ``personalized/acc_per_client``
    and the figure ``personalized/clients``; W&B gets the table ``clients``, one row per client. The
    names of other views begin with theirs. Other loggers are left alone: means are logged as
    metrics, and the table is in ``clients.csv``.

    A logger is recognized by the names of its classes, so that packages of absent loggers are not
    imported and subclasses count. Only rank 0 logs.

    Args:
        loggers: ``trainer.loggers``.
        records: The clients. Those without test data are in the table but not in the histograms.
        step: The round.
        view: Name of the view that the records are of.
        metric: The metric of histograms and figure; ``None`` means accuracy.
    """
    for logger in loggers:
        kinds = {kind.__name__ for kind in type(logger).__mro__}
        if "TensorBoardLogger" in kinds:
            _to_tensorboard(logger, records, step, view, metric or MainMetric())
        elif "WandbLogger" in kinds:
            _to_wandb(logger, records, step, view)


def _to_tensorboard(
    logger: Logger, records: Sequence[ClientRecord], step: int, view: str, metric: MainMetric
) -> None:
    name = metric.name
    tested = [record for record in records if record.has(name)]
    if not tested:
        return
    writer = logger.experiment  # type: ignore[attr-defined]
    for tag, values in (
        (f"initial/{name}_per_client", [record.before(name) for record in tested]),
        (f"personalized/{name}_per_client", [record.after(name) for record in tested]),
    ):
        bins = _ACCURACY_BINS if metric.is_share else "tensorflow"
        writer.add_histogram(metric_in_view(view, tag), np.asarray(values), step, bins=bins)
    figure = clients_figure(records, metric=metric)
    writer.add_figure(metric_in_view(view, "personalized/clients"), figure, step)


def _to_wandb(logger: Logger, records: Sequence[ClientRecord], step: int, view: str) -> None:
    columns = columns_of(records)
    data = [record.cells(columns) for record in records]
    key = file_in_view(view, "clients")
    logger.log_table(key=key, columns=columns, data=data, step=step)  # type: ignore[attr-defined]
