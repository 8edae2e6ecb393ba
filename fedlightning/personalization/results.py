"""Results of fine-tuning: per client, and as metrics, tables and figures per view."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fedlightning.core.main_metric import MainMetric
from fedlightning.core.metrics import VAL
from fedlightning.core.statistics import Spread, over_clients
from fedlightning.core.views import EvaluationView
from fedlightning.datamodules import Split
from fedlightning.personalization.scoring import Scores
from fedlightning.reporting import (
    ClientRecord,
    EpochRecord,
    clients_figure,
    finetuning_figure,
    save_figure,
    write_clients_csv,
    write_finetuning_csv,
)
from fedlightning.reporting.client_records import main_metric_of
from fedlightning.storage.run_layout import (
    CLIENTS,
    CLIENTS_FIGURE,
    FINETUNING,
    FINETUNING_FIGURE,
)

__all__ = ["PersonalResult", "ViewResult", "results_by_view", "write_results"]

_SPREAD = ("std", "min", "p10", "p90", "worst_decile", "jain")


@dataclass(frozen=True)
class PersonalResult:
    """One client before and after fine-tuning.

    Args:
        client: Client id.
        num_train: Examples that it trains on.
        num_examples: Examples that it was measured on, by split.
        scores: What was measured: before fine-tuning, after each epoch but the last if there is a
            curve, and after fine-tuning. Empty for a client without data to measure on.
        nearest_mean_acc: Test accuracy of the nearest class mean in feature space; nan if unknown.
        has_curve: Whether the scores are those after 0, 1, ... epochs.
        name: The client's name, if it has one.
    """

    client: int
    num_train: int
    num_examples: Mapping[Split, int]
    scores: tuple[Scores, ...] = ()
    nearest_mean_acc: float = math.nan
    has_curve: bool = False
    name: str = ""

    @property
    def record(self) -> ClientRecord:
        """The client's row for its own test data."""
        return self.record_on("test")

    @property
    def before(self) -> dict[str, float]:
        """Scores before fine-tuning on the client's own test data; on validation data ``val_``."""
        return _own(self.scores[0]) if self.scores else {}

    @property
    def after(self) -> dict[str, float]:
        """The same after fine-tuning."""
        return _own(self.scores[-1]) if self.scores else {}

    @property
    def curve(self) -> tuple[dict[str, float], ...]:
        """The same after 0, 1, ... epochs; empty without a curve."""
        return tuple(map(_own, self.scores)) if self.has_curve else ()

    def record_on(self, split: Split) -> ClientRecord:
        """Return the client's row for one of its splits."""
        before, after = (self.scores[at].get(split, {}) if self.scores else {} for at in (0, -1))
        return ClientRecord(
            client_id=self.client,
            num_train=self.num_train,
            num_test=self.num_examples.get(split, 0),
            acc_before=before.get("acc", math.nan),
            acc_after=after.get("acc", math.nan),
            loss_before=before.get("loss", math.nan),
            loss_after=after.get("loss", math.nan),
            others={
                f"{name}_{moment}": values.get(name, math.nan)
                for name in dict.fromkeys([*before, *after])
                if name not in ("acc", "loss")
                for moment, values in (("before", before), ("after", after))
            },
            name=self.name,
        )


@dataclass(frozen=True)
class ViewResult:
    """The results of the clients of one view.

    Args:
        view: The view.
        results: Its clients.
        main_metric: The metric whose spread over clients is measured, beside that of accuracy.
    """

    view: EvaluationView
    results: Sequence[PersonalResult]
    main_metric: MainMetric = field(default_factory=MainMetric)

    @property
    def records(self) -> list[ClientRecord]:
        """One row per client."""
        return [result.record_on(self.view.split) for result in self.results]

    def metrics(self) -> dict[str, float]:
        """Return means over clients, and how their accuracies are spread, under logged names."""
        view, metrics, main = self.view, dict[str, float](), self.main_metric
        short = VAL if view.on_validation_data else ""
        measured = [result for result in self.results if result.scores]
        for moment, at in (("initial", 0), ("personalized", -1)):
            scores = [
                (result.num_examples[view.split], result.scores[at][view.split])
                for result in measured
                if view.split in result.scores[at]
            ]
            for name in dict.fromkeys(name for _, values in scores for name in values):
                known = [(values[name], size) for size, values in scores if name in values]
                metrics |= _statistics(
                    view.metric(f"{moment}/{short}{name}"),
                    known,
                    main if name in ("acc", main.name) and not short else None,
                )
        nearest = Spread.of(result.nearest_mean_acc for result in measured)
        if nearest.count and view.split == "test":
            metrics[view.metric("initial/acc_nearest_mean")] = nearest.mean
        return metrics

    def curve(self, with_val: bool) -> list[EpochRecord]:
        """Return the main metric over epochs of fine-tuning, of the clients that have a curve.

        Args:
            with_val: Whether the clients' validation data counts, too.
        """
        curves = [result.scores for result in self.results if result.has_curve and result.scores]
        val = "val" if with_val else None
        name, split = self.main_metric.name, self.view.split
        return [
            EpochRecord.of(
                epoch,
                [(_value(at, split, name), _value(at, val, name)) for at in clients],
                self.main_metric,
            )
            for epoch, clients in enumerate(zip(*curves, strict=True))
        ]


def results_by_view(
    views: Sequence[EvaluationView],
    results: Sequence[PersonalResult],
    given: str | None = None,
    mode: str | None = None,
) -> list[ViewResult]:
    """Return the results view by view, in each by client id.

    Args:
        views: The views; those of data that belongs to no client have no results.
        results: The clients, in any order.
        given: ``federation.main_metric``.
        mode: ``federation.main_metric_mode``.
    """
    by_client = {result.client: result for result in results}
    main = main_metric_of((result.record for result in results), given, mode)
    return [
        ViewResult(view, [by_client[c] for c in view.clients if c in by_client], main)
        for view in views
        if not view.is_central
    ]


def write_results(folder: Path, results: Sequence[ViewResult]) -> None:
    """Write tables and figures about clients into a run folder.

    Args:
        folder: The run folder, which exists.
        results: The views; files of a view have its name before theirs.

    Raises:
        EnvironmentFailure: A file cannot be written.
    """
    tested = [result for result in results if not result.view.on_validation_data]
    with_val = {result.view.name for result in results if result.view.on_validation_data}
    curves = {result.view.name: result.curve(result.view.name in with_val) for result in tested}
    for result in tested:
        view, records = result.view, result.records
        if records or not view.name:
            write_clients_csv(folder / view.file(CLIENTS), records)
        metric = result.main_metric
        if not view.name and any(record.has(metric.name) for record in records):
            save_figure(clients_figure(records, metric=metric), folder / CLIENTS_FIGURE)
        if curves[view.name]:
            write_finetuning_csv(folder / view.file(FINETUNING), curves[view.name], metric)
    main = curves.pop("", [])
    if main:
        figure = finetuning_figure(main, curves, metric=tested[0].main_metric)
        save_figure(figure, folder / FINETUNING_FIGURE)


def _statistics(
    name: str, known: Sequence[tuple[float, int]], main: MainMetric | None
) -> dict[str, float]:
    values, sizes = [value for value, _ in known], [size for _, size in known]
    spread = main.spread(values) if main is not None else Spread.of(values)
    metrics = {**over_clients(name, values, sizes), name: spread.mean}
    if main is not None:
        metrics |= {f"{name}_{kind}": getattr(spread, kind) for kind in _SPREAD}
    return metrics


def _own(scores: Scores) -> dict[str, float]:
    """Return the scores on a client's own data by one name each."""
    val = {VAL + name: value for name, value in scores.get("val", {}).items()}
    return {**scores.get("test", {}), **val}


def _value(scores: Scores, split: Split | None, name: str) -> float:
    return scores.get(split, {}).get(name, math.nan) if split else math.nan
