"""`RunRecord`: what a run leaves for people: who had which data, and how it went."""

from __future__ import annotations

import time
import zlib
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.trainer.states import TrainerFn

from fedlightning.callbacks.personalization import PersonalizationCallback
from fedlightning.datamodules.client_roles import listed_clients
from fedlightning.engine._lightning.round_loop import Phase
from fedlightning.engine.loop import FederatedLoop
from fedlightning.engine.resume.resumption import Resumption, logged_by
from fedlightning.reporting import (
    RunSummary,
    Spread,
    curves_figure,
    partition_figure,
    render,
    save_figure,
)
from fedlightning.reporting.csv_logger import RoundCSVLogger
from fedlightning.reporting.round_table import RoundTable
from fedlightning.storage.run_layout import (
    CHECKPOINTS,
    CLIENT_STATES,
    CLIENTS,
    CLIENTS_FIGURE,
    CONFIG,
    CURVES_FIGURE,
    FINETUNING,
    FINETUNING_FIGURE,
    HELD_OUT_CLIENTS,
    HELD_OUT_FINETUNING,
    METRICS,
    PARTITION_FIGURE,
    PARTITION_TABLE,
    PERSONAL_MODELS,
    ROUNDS,
)

__all__ = ["RunRecord"]

_FILES = (
    CONFIG,
    METRICS,
    ROUNDS,
    CURVES_FIGURE,
    CLIENTS,
    CLIENTS_FIGURE,
    HELD_OUT_CLIENTS,
    FINETUNING,
    FINETUNING_FIGURE,
    HELD_OUT_FINETUNING,
    PERSONAL_MODELS,
    PARTITION_TABLE,
    PARTITION_FIGURE,
    CLIENT_STATES,
    CHECKPOINTS,
)


class RunRecord(pl.Callback):
    """Writes partition, rounds and learning curves into the run folder and prints a summary.

    ``rounds.csv`` has what differs from one machine to the next, or is no metric: the ``seconds``
    that a round took from its start to the new global model (evaluation not counted), the number of
    ``clients`` in its cohort, and a check sum of their ids, by which runs can be compared.

    Args:
        summary: Whether to print the closing summary.
    """

    def __init__(self, summary: bool = True) -> None:
        self.summary = summary
        self._started = time.monotonic()
        self._first_round: int | None = None
        self._rounds: RoundTable | None = None
        self._round_started = self._started

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep which loggers the run has, so that a resumed run goes on with the same ones."""
        checkpoint.setdefault("fedlightning", {})["loggers"] = logged_by(trainer.loggers)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Cut the tables back to the checkpoint: nothing can refuse it any more."""
        resumption = getattr(trainer, "resumption", None)
        if isinstance(resumption, Resumption):
            resumption.cut_back(trainer.loggers)
        if self._rounds is not None:
            self._rounds.truncate(_next_round(trainer))

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remember that something is trained, and since when."""
        self._round_started = time.monotonic()
        if self._first_round is None:
            self._first_round = trainer.current_epoch

    def on_aggregate_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write who took part in the round, and how long it took."""
        if self._rounds is None or not isinstance(loop := trainer.fit_loop, FederatedLoop):
            return
        cohort = loop.cohort(loop.round)
        facts = {
            "seconds": round(time.monotonic() - self._round_started, 4),
            "clients": len(cohort),
            "cohort_crc32": zlib.crc32(",".join(map(str, cohort)).encode()),
        }
        self._rounds.record(trainer.current_epoch, facts)
        self._rounds.save()

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write who has which data."""
        self._started, self._first_round, self._rounds = time.monotonic(), None, None
        folder, loop = _folder(trainer), trainer.fit_loop
        if folder is None or not isinstance(loop, FederatedLoop):
            return
        folder.mkdir(parents=True, exist_ok=True)
        self._rounds = RoundTable(folder / ROUNDS)
        loop.data.write_partition(folder)
        clients = loop.data.num_clients
        listed = listed_clients(clients)
        table = loop.data.partition_table("train", listed)
        if table.shape[1]:
            title = "Examples per client and class"
            if listed < clients:
                title += f", the first {listed:,} of {clients:,} clients"
            save_figure(partition_figure(table, title), folder / PARTITION_FIGURE)

    def _draw_curves(self, trainer: pl.Trainer, folder: Path | None) -> None:
        tables = [log.experiment for log in trainer.loggers if isinstance(log, RoundCSVLogger)]
        if folder is None or not tables or not tables[0].rounds:
            return
        rounds = list(tables[0].rounds)
        rows = [tables[0].row(index) for index in rounds]
        names = (
            "train/loss",
            "val/loss",
            "global/loss",
            "val/acc",
            "global/acc",
            "personalized/acc",
        )
        nan = float("nan")
        series = {name: [row.get(name, nan) for row in rows] for name in names}
        known = {name: ys for name, ys in series.items() if any(y == y for y in ys)}
        if known:
            save_figure(curves_figure(rounds, known), folder / CURVES_FIGURE)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw the learning curves and print the closing summary."""
        folder, loop = _folder(trainer), trainer.fit_loop
        self._draw_curves(trainer, folder)
        if self.summary and trainer.is_global_zero and isinstance(loop, FederatedLoop):
            print("\n" + render(self._summarise(trainer, loop, folder)))

    def _summarise(
        self, trainer: pl.Trainer, loop: FederatedLoop, folder: Path | None
    ) -> RunSummary:
        personal = [cb for cb in trainer.callbacks if isinstance(cb, PersonalizationCallback)]  # type: ignore[attr-defined]
        results = personal[-1].results if personal else []
        before = tuple(result.record.acc_before for result in results)
        after = tuple(result.record.acc_after for result in results)
        nearest = Spread.of(result.nearest_mean_acc for result in results)
        measured = loop.evaluator.last_round == trainer.current_epoch - 1
        scores = loop.evaluator.last_accuracies if measured else []
        known = any(result.record.tested for result in results)
        return RunSummary(
            algorithm=loop.federation.algorithm.name,
            rounds=trainer.current_epoch,
            clients=len(loop.data.training_clients),
            cohort_size=loop.clients_per_round(),
            seconds=time.monotonic() - self._started,
            global_acc=Spread.of(scores) if scores else None,
            before=Spread.of(before) if known else None,
            after=Spread.of(after) if known else None,
            nearest_mean_acc=nearest.mean if nearest.count else None,
            part=personal[-1].part if personal else None,
            stopped=_why_stopped(trainer) if self._first_round is not None else "nothing to do",
            folder=folder,
            files=tuple(name for name in _FILES if folder is not None and (folder / name).exists()),
            before_values=before,
            after_values=after,
            evaluated=_evaluated(loop) if scores or known else None,
            **_of_held_out(loop, personal, measured),
        )

    def state_dict(self) -> dict[str, Any]:
        """Keep nothing."""
        return {}


def _evaluated(loop: FederatedLoop) -> int:
    """Return how many of the clients that may train are evaluated."""
    data = loop.data
    return sum(not data.is_held_out(client) for client in data.evaluated_clients)


def _of_held_out(
    loop: FederatedLoop, personal: list[PersonalizationCallback], measured: bool
) -> dict[str, Any]:
    """Return what the summary says of clients that never train."""
    before: Spread | None
    after: Spread | None
    records = [result.record for result in personal[-1].held_out_results] if personal else []
    if any(record.tested for record in records):
        before = Spread.of(record.acc_before for record in records)
        after = Spread.of(record.acc_after for record in records)
    else:
        scores = loop.evaluator.last_held_out_accuracies if measured else []
        before, after = Spread.of(scores) if scores else None, None
    return {
        "held_out": len(loop.data.held_out_ids),
        "held_out_before": before,
        "held_out_after": after,
    }


def _folder(trainer: pl.Trainer) -> Path | None:
    """Return the run folder on rank 0, ``None`` elsewhere; every rank must ask."""
    if not trainer.loggers or trainer.fast_dev_run:  # type: ignore[attr-defined]
        return None
    folder = trainer.log_dir
    return Path(folder) if folder is not None and trainer.is_global_zero else None


def _next_round(trainer: pl.Trainer) -> int:
    """Return the round that will be aggregated next; a checkpoint may lie within an evaluation."""
    loop = trainer.fit_loop
    merged = isinstance(loop, FederatedLoop) and loop.phase in (Phase.AGGREGATED, Phase.VALIDATED)
    return trainer.current_epoch + merged


def _why_stopped(trainer: pl.Trainer) -> str:
    if trainer.current_epoch == trainer.max_epochs:
        return "all rounds done"
    if trainer.state.fn == TrainerFn.FITTING and trainer.should_stop:
        return "stopped early"
    return "max_steps reached"
