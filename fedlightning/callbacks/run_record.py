"""`RunRecord`: partition, rounds, learning curves and closing summary of a run."""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.trainer.states import TrainerFn

from fedlightning.callbacks.personalization import PersonalizationCallback
from fedlightning.core.arguments import NamedArguments
from fedlightning.core.client_names import NAME_COLUMN
from fedlightning.core.main_metric import MainMetric
from fedlightning.core.views import EvaluationView
from fedlightning.datamodules.client_roles import listed_clients
from fedlightning.engine.loop import FederatedLoop
from fedlightning.engine.written_folder import folder_on_rank_0
from fedlightning.privacy.example_level import ExampleDP, PrivateHead
from fedlightning.reporting import (
    RunSummary,
    Spread,
    TimelineEntry,
    ViewSummary,
    curves_figure,
    partition_figure,
    render,
    save_figure,
    timeline_figure,
)
from fedlightning.reporting.csv_logger import RoundCSVLogger
from fedlightning.reporting.figures.style import counted
from fedlightning.reporting.round_table import RoundTable
from fedlightning.storage.csv_files import write_csv
from fedlightning.storage.run_layout import (
    CHECKPOINTS,
    CLIENT_STATES,
    CLIENTS,
    CLIENTS_FIGURE,
    CONFIG,
    CURVES_FIGURE,
    FINETUNING,
    FINETUNING_FIGURE,
    FORGETTING_FIGURE,
    INFLUENCE,
    INFLUENCE_FIGURE,
    METRICS,
    PARTITION_FIGURE,
    PARTITION_TABLE,
    PERSONAL_MODELS,
    PRIVACY,
    ROUNDS,
    TIMELINE,
    TIMELINE_FIGURE,
)

__all__ = ["RunRecord"]

_FILES = (
    CONFIG,
    METRICS,
    PRIVACY,
    ROUNDS,
    CURVES_FIGURE,
    TIMELINE,
    TIMELINE_FIGURE,
    CLIENTS,
    CLIENTS_FIGURE,
    FINETUNING,
    FINETUNING_FIGURE,
    FORGETTING_FIGURE,
    INFLUENCE,
    INFLUENCE_FIGURE,
    PERSONAL_MODELS,
    PARTITION_TABLE,
    PARTITION_FIGURE,
    CLIENT_STATES,
    CHECKPOINTS,
)
_OF_VIEWS = {CLIENTS_FIGURE: CLIENTS, FINETUNING_FIGURE: FINETUNING}
"""The tables that every view has, by the file of the main view that precedes them."""


_LOSSES = ("train/loss", "val/loss", "global/loss")


class RunRecord(NamedArguments, pl.Callback):
    """Writes partition, rounds and learning curves into the run folder and prints a summary.

    ``rounds.csv`` has what depends on the machine or is not a metric: the ``seconds`` from a
    round's start to the new global model (without evaluation), the number of ``clients`` in its
    cohort, and a checksum of their ids, by which runs can be compared.

    Args:
        summary: Whether to print the closing summary.
    """

    def __init__(self, summary: bool = True) -> None:
        self.summary = summary
        self._started = time.monotonic()
        self._first_round: int | None = None
        self._rounds: RoundTable | None = None
        self._round_started = self._started

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open the table of rounds, already cut back to the checkpoint of a resumed run."""
        folder = folder_on_rank_0(trainer)
        if folder is not None and isinstance(trainer.fit_loop, FederatedLoop):
            self._rounds = RoundTable(folder / ROUNDS)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the round's clock."""
        self._round_started = time.monotonic()
        if self._first_round is None:
            self._first_round = trainer.current_epoch

    def on_aggregate_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the round's cohort and duration."""
        if self._rounds is None or not isinstance(loop := trainer.fit_loop, FederatedLoop):
            return
        cohort = [job.client for job in loop.jobs]
        facts = {
            "seconds": round(time.monotonic() - self._round_started, 4),
            "clients": len(cohort),
            "cohort_crc32": zlib.crc32(",".join(map(str, cohort)).encode()),
        }
        self._rounds.record(trainer.current_epoch, facts)
        self._rounds.save()

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the partition."""
        self._started, self._first_round, self._rounds = time.monotonic(), None, None
        folder, loop = folder_on_rank_0(trainer), trainer.fit_loop
        if folder is None or not isinstance(loop, FederatedLoop):
            return
        folder.mkdir(parents=True, exist_ok=True)
        loop.data.write_partition(folder)
        clients = loop.data.num_clients
        listed = listed_clients(clients)
        table = loop.data.partition_table("train", listed)
        if table.shape[1]:
            title = "Examples per client and class"
            if listed < clients:
                title += f", the first {listed:,} of {clients:,} clients"
            save_figure(
                partition_figure(table, title, loop.data.client_names), folder / PARTITION_FIGURE
            )

    def _draw_curves(self, trainer: pl.Trainer, loop: FederatedLoop, folder: Path) -> None:
        tables = [log.experiment for log in trainer.loggers if isinstance(log, RoundCSVLogger)]
        if not tables or not tables[0].rounds:
            return
        rounds = list(tables[0].rounds)
        rows = [tables[0].row(index) for index in rounds]
        main, logged = (
            loop.evaluator.main_metric,
            list(dict.fromkeys(n for row in rows for n in row)),
        )
        columns = sorted(main.columns(logged), key=_place_of)
        others = [
            name
            for view in _other_views(loop)
            for name in (
                main.column(logged, view.name), view.metric(f"personalized/{main.name}")
            )
            if name is not None
        ]  # fmt: skip
        names = list(dict.fromkeys([*_LOSSES, *columns, *others]))
        nan = float("nan")
        series = {name: [row.get(name, nan) for row in rows] for name in names}
        known = {name: ys for name, ys in series.items() if any(y == y for y in ys)}
        if known:
            clock = [row.get("time/simulated", nan) for row in rows]
            timed = loop.schedule.timed and all(second == second for second in clock)
            figure = curves_figure(rounds, known, clock=clock if timed else None, main=main)
            save_figure(figure, folder / CURVES_FIGURE)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw the learning curves and print the closing summary."""
        folder, loop = folder_on_rank_0(trainer), trainer.fit_loop
        if not isinstance(loop, FederatedLoop):
            return
        if folder is not None:
            self._draw_curves(trainer, loop, folder)
            if loop.schedule.timed:
                _write_timeline(loop, folder)
        if self.summary and trainer.is_global_zero:
            print("\n" + render(self._summarise(trainer, loop, folder)))

    def _summarise(
        self, trainer: pl.Trainer, loop: FederatedLoop, folder: Path | None
    ) -> RunSummary:
        personal = [cb for cb in trainer.callbacks if isinstance(cb, PersonalizationCallback)]  # type: ignore[attr-defined]
        results = personal[-1].results if personal else []
        records = [result.record for result in results]
        metric = personal[-1].views[0].main_metric if results else loop.evaluator.main_metric
        before = tuple(record.before(metric.name) for record in records)
        after = tuple(record.after(metric.name) for record in records)
        nearest = Spread.of(result.nearest_mean_acc for result in results)
        measured = loop.evaluator.last_round == trainer.current_epoch - 1
        accuracies = loop.evaluator.accuracies if measured else {}
        known = any(record.has(metric.name) for record in records)
        views = _other_views(loop)
        main = next((view for view in loop.data.evaluation_views() if not view.name), None)
        return RunSummary(
            algorithm=loop.federation.algorithm.name,
            rounds=trainer.current_epoch,
            clients=len(loop.data.training_clients),
            cohort_size=loop.clients_per_round(),
            seconds=time.monotonic() - self._started,
            global_acc=metric.spread(accuracies[""]) if accuracies.get("") else None,
            before=metric.spread(before) if known else None,
            after=metric.spread(after) if known else None,
            nearest_mean_acc=nearest.mean if nearest.count and metric.is_share else None,
            metric=metric,
            part=personal[-1].part if personal else None,
            stopped=_why_stopped(trainer) if self._first_round is not None else "nothing to do",
            folder=folder,
            files=tuple(_files(folder, views)) if folder is not None else (),
            before_values=before,
            after_values=after,
            evaluated=len(main.clients) if main and (accuracies.get("") or known) else None,
            untested=sum(record.num_test == 0 for record in records) if known else None,
            views=tuple(
                summary
                for view in views
                if (summary := _of_view(view, personal, accuracies, metric)) is not None
            ),
            keeps_parts=bool(loop.roles.kept),
            clock=_clock(loop),
            sized=loop.federation.sized,
            privacy=tuple(_privacy(loop, personalized=bool(results))),
        )

    def state_dict(self) -> dict[str, Any]:
        """Return an empty state."""
        return {}


def _write_timeline(loop: FederatedLoop, folder: Path) -> None:
    """Write and draw when clients trained: the plan says it without a look at the run."""
    entries = [
        TimelineEntry(index, job.client, job.version, job.start, job.time, after.time)
        for index, (jobs, after) in enumerate(islice(loop.plan(), loop.rounds_aggregated))
        for job in jobs
    ]
    header = ["round", "client", "version", "staleness", "start", "arrival", "merged"]
    names = loop.data.client_names
    if names is not None:
        header.append(NAME_COLUMN)
    rows = (
        [e.round, e.client, e.version, e.staleness, e.start, e.arrival, e.merged]
        + ([] if names is None else [names[e.client]])
        for e in entries
    )
    write_csv(folder / TIMELINE, header, rows)
    if entries:
        save_figure(timeline_figure(entries, names=names), folder / TIMELINE_FIGURE)


def _clock(loop: FederatedLoop) -> str:
    """Return what the closing summary says of simulated time."""
    if not loop.schedule.timed or loop.simulated_time is None:
        return ""
    seconds, updates = f"{loop.simulated_time:,.1f} simulated seconds", loop.jobs_per_commit()
    if updates == loop.clients_per_round():
        return seconds
    return f"{seconds} · {counted(updates, 'update')} a round ({type(loop.schedule).__name__})"


def _privacy(loop: FederatedLoop, personalized: bool) -> Iterator[str]:
    """Yield what the closing summary says of privacy.

    How often heads were fine-tuned is not known of a run that was resumed, nor what comes after it.
    """
    for hook in loop.federation.algorithm.hooks:
        if isinstance(hook, ExampleDP) and not loop.keeps_for_clients:
            yield (
                f"privacy of examples: each client's account at delta = {hook.delta:g} is kept at "
                "its node; the server knows no epsilon"
            )
        elif isinstance(hook, ExampleDP):
            kept = (loop.client_store.get(client) or {} for client in loop.client_store)
            clients, epsilon = hook.worst(kept)
            yield (
                f"privacy of examples: epsilon <= {epsilon:.4g} at delta = {hook.delta:g} for each "
                f"of {counted(clients, 'client')} that trained (add or remove one example)"
            )
        elif isinstance(hook, PrivateHead) and personalized:
            yield (
                "privacy of fine-tuned parts: not counted; each personalization costs a client of "
                f"n examples PrivateHead's epsilon(n, steps(n)) more, at delta = {hook.delta:g}"
            )
    if loop.private is not None:
        yield from loop.private.summary(loop.server.private_state)


def _other_views(loop: FederatedLoop) -> list[EvaluationView]:
    """Return the views beside the main one that are not of validation data."""
    views = loop.data.evaluation_views()
    return [view for view in views if view.name and not view.on_validation_data]


def _of_view(
    view: EvaluationView,
    personal: Sequence[PersonalizationCallback],
    accuracies: Mapping[str, Sequence[float]],
    main: MainMetric,
) -> ViewSummary | None:
    """Return a view's part of the summary; ``None`` if nothing was measured."""
    clients = 0 if view.is_central else view.num_clients
    found = [each for each in personal[-1].views if each.view == view] if personal else []
    records = [record for each in found for record in each.records]
    if any(record.has(main.name) for record in records):
        before = main.spread(record.before(main.name) for record in records)
        after = main.spread(record.after(main.name) for record in records)
        return ViewSummary(view.name, view.split, clients, before, after)
    scores = accuracies.get(view.name)
    return ViewSummary(view.name, view.split, clients, main.spread(scores)) if scores else None


def _place_of(name: str) -> int:
    """Return where a metric's curve stands among others: validation, test, personalized."""
    return 2 if name.startswith("personalized") else 0 if name.startswith("val") else 1


def _files(folder: Path, views: Sequence[EvaluationView]) -> Iterator[str]:
    """Yield the names of the files in a run folder that the summary lists."""
    for name in _FILES:
        of_views = [view.file(_OF_VIEWS[name]) for view in views if name in _OF_VIEWS]
        yield from (file for file in (name, *of_views) if (folder / file).exists())


def _why_stopped(trainer: pl.Trainer) -> str:
    if trainer.current_epoch == trainer.max_epochs:
        return "all rounds done"
    if trainer.state.fn == TrainerFn.FITTING and trainer.should_stop:
        return "stopped early"
    return "max_steps reached"
