"""The main metric over the epochs of fine-tuning."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields

from fedlightning.core.main_metric import MainMetric
from fedlightning.core.statistics import Spread
from fedlightning.storage.csv_files import write_csv

__all__ = ["EpochRecord", "write_finetuning_csv"]


@dataclass(frozen=True)
class EpochRecord:
    """How well fine-tuned models serve their clients after some epochs.

    Where the metric that counts is not accuracy, all numbers called so are its.

    Args:
        epoch: Epochs of fine-tuning done; 0 is the model before it.
        num_clients: Number of clients with a defined accuracy.
        acc_mean: Mean accuracy on the clients' test data, in 0..1.
        acc_std: Its standard deviation over clients (``ddof=0``).
        acc_p10: Its tenth percentile; of a metric of which less is better, the ninetieth.
        val_acc_mean: Mean accuracy on the clients' validation data, by which to choose a number of
            epochs; nan without validation data.
    """

    epoch: int
    num_clients: int
    acc_mean: float
    acc_std: float
    acc_p10: float
    val_acc_mean: float

    @classmethod
    def of(
        cls,
        epoch: int,
        accuracies: Iterable[tuple[float, float]],
        metric: MainMetric | None = None,
    ) -> EpochRecord:
        """Return the record of clients' accuracies on test and on validation data.

        Args:
            epoch: Epochs of fine-tuning done.
            accuracies: Each client's values of the metric.
            metric: The metric; ``None`` means accuracy.

        Example:
            >>> EpochRecord.of(2, [(0.5, 0.25), (1.0, 0.75)]).val_acc_mean
            0.5
        """
        metric, pairs = metric or MainMetric(), list(accuracies)
        test = Spread.of(acc for acc, _ in pairs)
        val = Spread.of(acc for _, acc in pairs)
        bad = test.p10 if metric.mode == "max" else test.p90
        return cls(epoch, test.count, test.mean, test.std, bad, val.mean)


def write_finetuning_csv(
    path: str | os.PathLike[str],
    records: Iterable[EpochRecord],
    metric: MainMetric | None = None,
) -> None:
    """Write one row per epoch; a reader never sees half a file.

    Args:
        path: The file, by convention ``finetuning.csv`` in the run folder.
        records: The epochs, in order.
        metric: The metric, by whose name columns are called; ``None`` means accuracy.

    Raises:
        EnvironmentFailure: The file cannot be written.

    Example:
        >>> path = getfixture("tmp_path") / "finetuning.csv"
        >>> write_finetuning_csv(path, [EpochRecord.of(0, [(0.5, 0.25), (1.0, 0.75)])])
        >>> print(path.read_text(), end="")
        epoch,num_clients,acc_mean,acc_std,acc_p10,val_acc_mean
        0,2,0.75,0.25,0.55,0.5
        >>> write_finetuning_csv(path, [], MainMetric("mae", "min"))
        >>> print(path.read_text(), end="")
        epoch,num_clients,mae_mean,mae_std,mae_p90,val_mae_mean
    """
    metric = metric or MainMetric()
    header = [field.name.replace("acc", metric.name) for field in fields(EpochRecord)]
    if metric.mode == "min":
        header = [name.replace("_p10", "_p90") for name in header]
    write_csv(path, header, map(astuple, records))
