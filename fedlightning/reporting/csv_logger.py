"""A CSV logger with one row per round, and a folder that one process owns."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_fabric.loggers.logger import rank_zero_experiment
from pytorch_lightning.core.saving import save_hparams_to_yaml
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.utilities import rank_zero_only

from fedlightning.errors import ConfigError
from fedlightning.reporting.round_table import RoundTable
from fedlightning.storage.files import os_errors_as_failures
from fedlightning.storage.run_folders import claim_version, next_version
from fedlightning.storage.run_layout import HPARAMS, METRICS

__all__ = ["RoundCSVLogger"]

# Lightning and its users log these as an x-axis; here the x-axis is the column ``round``.
_AXES = {"round", "epoch", "step"}


class RoundCSVLogger(CSVLogger):
    """Lightning's ``CSVLogger`` with exactly one row per round in ``metrics.csv``.

    The ``step`` that Lightning passes is the round index, so everything logged with one step is one
    row, and ``step`` and ``epoch`` are not columns. A cell is empty where a metric was not logged,
    and ``float(cell)`` is the logged number. The file is up to date after every :meth:`save`, which
    Lightning calls after each log.

    With ``version=None`` the first use of :attr:`version` creates the folder ``version_N``. Only
    one process can create it, so runs that start together get separate folders. Nothing is created
    before. The rows of an existing version stay; rounds logged again replace theirs.

    Args:
        save_dir: Folder of all logs, on a local filesystem.
        name: Folder inside ``save_dir``; ``None`` for none.
        version: An int ``N`` for the folder ``version_N``, a str for a folder of that name,
            ``None`` for the next free number.
        prefix: Prepended to each metric's name, with a hyphen between.
        flush_logs_every_n_steps: Write the file every so many rounds, also without :meth:`save`.

    Raises:
        ConfigError: ``save_dir`` is a URL.

    Example:
        >>> logger = RoundCSVLogger(getfixture("tmp_path"))
        >>> logger.log_metrics({"train/loss": 2.5, "epoch": 0}, step=0)
        >>> logger.log_metrics({"global/acc": 0.25, "epoch": 0}, step=0)
        >>> logger.save()
        >>> print(Path(logger.log_dir, "metrics.csv").read_text(), end="")
        round,train/loss,global/acc
        0,2.5,0.25
    """

    def __init__(
        self,
        save_dir: str | os.PathLike[str],
        name: str | None = "lightning_logs",
        version: int | str | None = None,
        prefix: str = "",
        flush_logs_every_n_steps: int = 1,
    ) -> None:
        if "://" in os.fspath(save_dir):
            raise ConfigError(
                f"save_dir='{os.fspath(save_dir)}' is a URL, and RoundCSVLogger writes to local "
                "folders only. Use pytorch_lightning.loggers.CSVLogger there."
            )
        super().__init__(os.fspath(save_dir), name, version, prefix, flush_logs_every_n_steps)
        self._given_version = version
        self._metric_prefix = f"{prefix}{self.LOGGER_JOIN_CHAR}" if prefix else ""
        self._flush_every = flush_logs_every_n_steps
        self._table: RoundTable | None = None
        self._hparams: dict[str, Any] = {}

    @property
    def version(self) -> int | str:
        """The version; with ``version=None`` the first use claims a new folder.

        Only rank 0 claims. On other ranks the number is a guess: ``trainer.log_dir`` broadcasts
        rank 0's.
        """
        if self._given_version is None:
            claimed = rank_zero_only(claim_version)(self.root_dir)
            self._given_version = next_version(self.root_dir) if claimed is None else claimed
        return self._given_version

    @property
    def given_version(self) -> int | str | None:
        """The version, or ``None`` while none is given or claimed."""
        return self._given_version

    def continue_in(self, version: int | str) -> None:
        """Continue in the folder of an earlier run; call it before anything is logged."""
        self._given_version = version

    @property
    @rank_zero_experiment
    def experiment(self) -> RoundTable:
        """The table behind ``metrics.csv``; its folder exists from here on."""
        if self._table is None:
            with os_errors_as_failures("create", self.log_dir):
                os.makedirs(self.log_dir, exist_ok=True)
            self._table = RoundTable(Path(self.log_dir, METRICS))
        return self._table

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Merge ``metrics`` into the row of round ``step``; without one, into a new last row."""
        table = self.experiment
        named = {f"{self._metric_prefix}{k}": v for k, v in metrics.items() if k not in _AXES}
        if not named:
            return
        if step is None:
            step = table.rounds[-1] + 1 if table.rounds else 0
        table.record(step, named)
        if (step + 1) % self._flush_every == 0:
            self.save()

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace | None = None) -> None:
        """Write ``hparams.yaml``, as Lightning's own logger does."""
        self._hparams.update(vars(params) if isinstance(params, Namespace) else params or {})
        _ = self.experiment
        save_hparams_to_yaml(os.path.join(self.log_dir, HPARAMS), self._hparams)

    @rank_zero_only
    def truncate(self, round: int) -> None:  # noqa: A002
        """Remove ``round`` and all later ones, for a run that resumes before them.

        What is then logged for an earlier round joins its row.
        """
        self.experiment.truncate(round)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write what is still in memory; a logger that logged nothing creates nothing."""
        if self._table is not None:
            self._table.save()
