"""The report's page: what was compared, the results, and how far to trust them."""

from __future__ import annotations

import csv
import html
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedlightning._version import __version__
from fedlightning.core.main_metric import MainMetric
from fedlightning.core.views import HELD_OUT, view_label
from fedlightning.reporting.figures.save import partition_figure
from fedlightning.reporting.figures.style import counted
from fedlightning.storage.run_layout import PARTITION_TABLE, client_names_in
from fedlightning.studies.paired_tests import PairedTest
from fedlightning.studies.rankings import Ranking, rank_conditions, rank_seeds
from fedlightning.studies.report.figure_accuracies import (
    distributions_figure,
    fairness_figure,
    shares_figure,
)
from fedlightning.studies.report.figure_learning import learning_figure
from fedlightning.studies.report.figure_svg import Look, styles_for, svg
from fedlightning.studies.report.html import collapsible, document, paragraph, section
from fedlightning.studies.report.paper_figures import PAGE, rank_diagram
from fedlightning.studies.report.privacy import is_private, privacy_parts
from fedlightning.studies.report.tables import (
    clients_tests_table,
    conditions_table,
    costs_table,
    runs_table,
    seed_tests_table,
    settings_tables,
    summary_table,
    versions_table,
)
from fedlightning.studies.results import Collection, Group
from fedlightning.studies.run_reader import Run
from fedlightning.studies.seed_tests import SeedTest, WithinSeeds, within_seeds
from fedlightning.studies.statistics import Summary

__all__ = ["ReportData", "page"]

_MOST_PARTITIONS = 4

_TABLE_NOTE = (
    "{What} on each client's own test data, before and after personalization. "
    "Each number is a mean over seeds of a number over clients. ± beside it is the "
    "standard deviation of that mean over seeds (with n-1 in the denominator; none for a single "
    "seed), “± over clients” the mean over seeds of the standard deviation over clients. The "
    "worst tenth is the mean over the worst tenth of the clients, rounded down but at least one. "
    "Jain's index is 1 where all clients have the same {what}. A client whose {what} is "
    "undefined is left out of every number over clients. Bytes are those of all clients of a round "
    "together. Bold: the best of a column."
)
_SEED_NOTE = (
    "A pair is a seed, with the same partition, under both variants; its value is the mean {what} "
    "over clients {when} personalization. The interval is Student's t over seeds, d the mean over "
    "the standard deviation of the differences, delta Cliff's over seeds; both are positive in "
    "favour of the variant. p is of the paired t test, two-sided, corrected by Holm's method over "
    "the tests of each table. It takes the differences for normal: few seeds cannot tell."
)
_CLIENTS_NOTE = (
    "Clients of one seed share a model, so a test over them says how sure a difference is within "
    "that seed's runs, not that it would come again. A pair is the same client, with the same data "
    "and seed, under both variants. The last column counts the seeds in which Wilcoxon's "
    "signed-rank test over the clients of that seed alone, two-sided, with Pratt's treatment of "
    "zeros, has p below 0.05. tests.csv has the same test over the clients of all seeds together, "
    "whose p is too small for that reason."
)
_RANK_NOTE = (
    "Mean ranks over {blocks}, the best on the left. Bars join variants that Nemenyi's test cannot "
    "tell apart at the level 0.05: their mean ranks are closer than the critical difference CD. "
    "Friedman's test of any difference: p {p}."
)


@dataclass(frozen=True)
class ReportData:
    """The contents of the page.

    Args:
        title: Its title.
        collection: The runs.
        summaries: One for each group.
        views: The same for the other evaluation views, by name.
        tests: All comparisons over clients.
        seed_tests: All comparisons over seeds.
        baselines: The baseline of each condition.
        metric: What was tested.
        folder: The folder of the page.
        files: The files beside it.
    """

    title: str
    collection: Collection
    summaries: Sequence[Summary]
    views: Mapping[str, Sequence[Summary]]
    tests: Sequence[PairedTest]
    seed_tests: Sequence[SeedTest]
    baselines: dict[str, str]
    metric: str
    folder: Path
    files: Sequence[str]


def page(findings: ReportData) -> str:
    """Return the page, one self-contained HTML text."""
    collection = findings.collection
    looks = styles_for(collection.variants)
    several = len(collection.conditions) > 1
    body = [f"<h1>{html.escape(findings.title)}</h1>", paragraph(_overview(collection))]
    body += _warnings(collection.warnings)
    body.append(_contents(findings, several))
    if several:
        note = (
            f"{_capital(collection.main_metric)} after personalization, mean over clients and "
            "seeds ± standard deviation over seeds."
        )
        parts = [conditions_table(findings.summaries), paragraph(note, note=True)]
        if (ranking := rank_conditions(collection, findings.metric)) is not None:
            parts.append(_ranks(ranking))
        body.append(section("Overview", "overview", parts))
    for at, condition in enumerate(collection.conditions):
        parts = list(_condition(findings, condition, looks))
        if several:
            body.append(section(condition, f"c{at}", parts))
        else:
            body += [f'<div id="c{at}"></div>', *parts]
    if is_private(collection.runs):
        body.append(section("Privacy", "privacy", privacy_parts(collection.runs)))
    body.append(section("Data per client", "partitions", _partitions(collection)))
    body.append(section("Settings", "settings", _settings(findings)))
    return document(findings.title, body)


def _capital(metric: MainMetric) -> str:
    return "Accuracy in percent" if metric.is_share else metric.title


def _overview(collection: Collection) -> str:
    seeds = sorted({run.seed for run in collection.runs})
    text = f"{counted(len(collection.runs), 'run')}: {counted(len(collection.variants), 'variant')}"
    if len(collection.conditions) > 1:
        text += f", {counted(len(collection.conditions), 'condition')}"
    return f"{text}, {counted(len(seeds), 'seed')} ({', '.join(map(str, seeds[:12]))}" + (
        ", ...)." if len(seeds) > 12 else ")."
    )


def _warnings(warnings: Sequence[str]) -> list[str]:
    if not warnings:
        return []
    items = "".join(f"<li>{html.escape(text)}</li>" for text in warnings)
    return [f'<ul class="warnings">{items}</ul>']


def _contents(findings: ReportData, several: bool) -> str:
    links = [("overview", "Overview")] if several else []
    names = findings.collection.conditions
    links += [(f"c{at}", name or "Results") for at, name in enumerate(names)]
    links += [("partitions", "Data"), ("settings", "Settings and runs")]
    shown = "".join(f'<a href="#{anchor}">{html.escape(name)}</a> ' for anchor, name in links)
    files = ", ".join(f'<a href="{name}">{name}</a>' for name in findings.files)
    return f'<nav>{shown}</nav><p class="note">The numbers as tables: {files}.</p>'


def _condition(findings: ReportData, condition: str, looks: dict[str, Look]) -> Iterator[str]:
    groups = findings.collection.of(condition)
    mine = [summary for summary in findings.summaries if summary.condition == condition]
    metric = findings.collection.main_metric
    about = _TABLE_NOTE.format(What=_capital(metric), what=metric.title)
    results = [summary_table(mine), costs_table(mine), paragraph(about, note=True)]
    yield section("Results", f"results-{condition}", results, level=3)
    if any(run.clients for group in groups for run in group.runs.values()):
        yield _figure(svg(distributions_figure(groups, looks), f"{metric.title} per client"))
        yield _figure(svg(shares_figure(groups, looks), f"shares of clients by {metric.title}"))
        yield _figure(
            svg(fairness_figure(groups, looks), f"mean {metric.title} and the worst tenth")
        )
    if (drawn := learning_figure(groups, looks)) is not None:
        caption = (
            "Mean over seeds; shaded: one standard deviation, for up to eight variants. Rounds are "
            "counted when they are done: the first is 1, which is round 0 of the CSV files. Where "
            "curves coincide, dashes let the one below through; a single point is a dot."
        )
        curves = [_figure(svg(drawn, "learning curves"), caption)]
        yield section("Learning curves", f"curves-{condition}", curves, level=3)
    yield section("Differences", f"tests-{condition}", _tests(findings, condition), level=3)
    for view, summaries in findings.views.items():
        if here := [summary for summary in summaries if summary.condition == condition]:
            parts = _view(view, groups, here, looks)
            yield section(_view_title(view), f"{view}-{condition}", parts, level=3)


def _tests(findings: ReportData, condition: str) -> Iterator[str]:
    metric = findings.collection.main_metric
    baseline = findings.baselines[condition]
    mine = [test for test in findings.seed_tests if test.condition == condition]
    against = [test for test in mine if test.family == "baseline"]
    pairs = [test for test in mine if test.family == "all pairs"]
    if not against:
        yield paragraph("There is one variant only: nothing to compare it with.")
        return
    unit = "points of accuracy" if metric.is_share else metric.title
    most = counted(max(test.seeds for test in against), "seed")
    yield paragraph(f"Every variant against {baseline}, in {unit} over {most}.")
    yield seed_tests_table(against, name_both=False, metric=metric)
    if len(pairs) > 1:
        every = seed_tests_table(pairs, name_both=True, metric=metric)
        yield collapsible(f"all {len(pairs)} pairs, over seeds", every)
    when = "after" if findings.metric == "acc_after" else "before"
    yield paragraph(_SEED_NOTE.format(when=when, what=metric.title), note=True)
    groups = findings.collection.of(condition)
    if (ranking := rank_seeds(groups, findings.metric)) is not None:
        yield _ranks(ranking)
    yield from _client_tests(findings, condition, groups)


def _client_tests(findings: ReportData, condition: str, groups: Sequence[Group]) -> Iterator[str]:
    metric, of = findings.collection.main_metric, {group.variant: group for group in groups}
    tests: dict[str, list[tuple[PairedTest, WithinSeeds]]] = {}
    for test in findings.tests:
        if test.condition == condition:
            within = within_seeds(of[test.variant], of[test.other], findings.metric)
            tests.setdefault(test.family, []).append((test, within))
    if against := tests.get("baseline"):
        yield "<h4>Clients within seeds</h4>"
        yield clients_tests_table(against, name_both=False, metric=metric)
        if len(pairs := tests.get("all pairs", [])) > 1:
            every = clients_tests_table(pairs, name_both=True, metric=metric)
            yield collapsible(f"all {len(pairs)} pairs, over clients", every)
        yield paragraph(_CLIENTS_NOTE, note=True)


def _ranks(ranking: Ranking) -> str:
    p = "below 0.0001" if ranking.p_value < 1e-4 else f"= {ranking.p_value:.4f}"
    blocks = f"{ranking.blocks} {ranking.unit}"
    drawing = svg(rank_diagram(ranking, PAGE), "critical-difference diagram")
    return _figure(drawing, _RANK_NOTE.format(blocks=blocks, p=p))


def _view(
    view: str, groups: Sequence[Group], summaries: Sequence[Summary], looks: dict[str, Look]
) -> Iterator[str]:
    yield summary_table(summaries, main=False)
    known = [group for group in groups if any(run.views.get(view) for run in group.runs.values())]
    if known:
        yield _figure(svg(distributions_figure(known, looks, view), view_label(view)))
    if (drawn := learning_figure(groups, looks, view)) is not None:
        yield _figure(svg(drawn, f"learning curves, {view_label(view)}"))


def _view_title(view: str) -> str:
    if view == HELD_OUT:
        return "Clients held out of training"
    return f"Evaluation view {view}"


def _partitions(collection: Collection) -> Iterator[str]:
    """Draw each partition once, for the first seed."""
    first = min(run.seed for run in collection.runs)
    shown: dict[str, Run] = {}
    for run in collection.runs:
        if run.seed == first and (run.folder / PARTITION_TABLE).is_file():
            shown.setdefault(run.partition or str(run.folder), run)
    digests = {run.partition for run in collection.runs if run.partition}
    yield paragraph(f"{counted(len(digests), 'partition')} in all; seed {first} is shown."
                    if digests else "No run records its partition.")  # fmt: skip
    for run in list(shown.values())[:_MOST_PARTITIONS]:
        counts = _class_counts(run.folder / PARTITION_TABLE)
        where = f", {run.condition}" if run.condition and len(shown) > 1 else ""
        if counts.size:
            title = f"Examples per client and class{where}"
            yield _figure(svg(partition_figure(counts, title, client_names_in(run.folder)), title),
                          f"partition {run.partition[:8]}")  # fmt: skip
    if len(shown) > _MOST_PARTITIONS:
        yield paragraph(f"{len(shown) - _MOST_PARTITIONS} more are in the run folders.")


def _class_counts(path: Path) -> np.ndarray:
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    at = [index for index, name in enumerate(rows[0] if rows else []) if name.startswith("class_")]
    counts = [[int(row[index]) for index in at] for row in rows[1:]]
    return np.array(counts, dtype=np.int64).reshape(len(counts), len(at))


def _settings(findings: ReportData) -> Iterator[str]:
    differing, common = settings_tables(findings.collection)
    yield paragraph("What differs between the variants, besides the seed:")
    yield differing
    yield collapsible("settings of all runs", common)
    runs = findings.collection.runs
    yield collapsible(
        f"all {len(runs)} runs", runs_table(runs, lambda run: _relative(run, findings.folder))
    )
    yield collapsible("versions", versions_table(runs))
    yield paragraph(f"Made by fedlightning {__version__}.", note=True)


def _relative(run: Run, folder: Path) -> str:
    try:
        return os.path.relpath(run.folder, folder)
    except ValueError:  # another drive
        return str(run.folder)


def _figure(drawing: str, caption: str = "") -> str:
    text = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
    return f"<figure>{drawing}{text}</figure>"
