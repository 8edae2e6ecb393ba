"""``python -m fedlightning report``: the results of many runs, in one HTML file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedlightning.cli.terminal import print_warning
from fedlightning.core.main_metric import MainMetric
from fedlightning.errors import ConfigError, FedLightningError, did_you_mean
from fedlightning.storage.files import write_atomically
from fedlightning.storage.run_layout import CLIENTS
from fedlightning.studies.options import read_words
from fedlightning.studies.paired_tests import PairedTest, against_baseline, all_pairs
from fedlightning.studies.report.csv_tables import (
    write_clients,
    write_curves,
    write_seed_tests,
    write_summary,
    write_tests,
)
from fedlightning.studies.report.page import ReportData, page
from fedlightning.studies.report.paper import (
    PAPER_OPTIONS,
    PaperOptions,
    paper_options,
    write_paper,
)
from fedlightning.studies.results import Collection, collect
from fedlightning.studies.seed_tests import SeedTest, seed_tests
from fedlightning.studies.statistics import Summary, best, summarise
from fedlightning.studies.study import load_yaml

__all__ = ["report", "write_report"]

_VALUES = ("output", "baseline", "metric", "title", *PAPER_OPTIONS)
_METRICS = ("acc_after", "acc_before")
_FILES = ("summary.csv", "seed_tests.csv", "tests.csv", "curves.csv", CLIENTS)
_MOST_WARNED = 6
_HELP = """usage: python -m fedlightning report DIR... [--key=value ...]

  DIR...             folders that contain runs, at any depth
  --output DIR       the folder of the report; by default DIR, or report/ if there are several
  --baseline NAME    the variant that the others are tested against
  --metric NAME      what to test: acc_after (the default) or acc_before, the main metric of the
                     runs after or before personalization
  --title TEXT       the report's title
  --tables KINDS     latex, markdown, or latex,markdown: tables for a paper
  --figures KIND     pdf, svg or png: figures for a paper
  --width WIDTH      their width: column (3.3 inches, the default), page (6.9), or inches
  --spread KIND      behind the ± in tables: sd (the default) or ci, over seeds"""


def report(words: Sequence[str]) -> int:
    """Write a report on the runs in some folders.

    Args:
        words: The arguments after ``report``.

    Returns:
        The exit code, 0.

    Raises:
        ConfigError: An option is wrong, or a folder does not exist.
        DataError: No run is finished.
    """
    if {"-h", "--help"} & set(words):
        print(_HELP)
        return 0
    given = read_words(words, "report", (), _VALUES)
    if given.settings:
        raise ConfigError(f"report changes no settings: --{next(iter(given.settings))}.")
    if not given.positional:
        raise ConfigError(
            "report expects folders: python -m fedlightning report DIR... [--output=DIR] "
            "[--baseline=VARIANT]"
        )
    folders = [Path(word) for word in given.positional]
    alone = len(folders) == 1
    study = _study_in(folders[0]) if alone else {}
    variants = study.get("variants")
    metric = str(given.values.get("metric", "acc_after"))
    if metric not in _METRICS:
        raise ConfigError(f"--metric={metric} must be one of {', '.join(_METRICS)}.")
    write_report(
        folders,
        Path(str(given.values.get("output") or (folders[0] if alone else "report"))),
        title=str(given.values.get("title") or study.get("title") or folders[0].resolve().name),
        baseline=_string(given.values.get("baseline")) or _string(study.get("baseline")),
        order=[str(name) for name in variants] if isinstance(variants, (dict, list)) else (),
        metric=metric,
        paper=paper_options(given.values),
    )
    return 0


def write_report(
    folders: Sequence[Path],
    output: Path,
    title: str,
    baseline: str | None = None,
    order: Sequence[str] = (),
    metric: str = "acc_after",
    missing: Sequence[str] = (),
    paper: PaperOptions | None = None,
) -> None:
    """Write ``report.html``, and its numbers as CSV files.

    These are ``summary.csv``, ``seed_tests.csv``, ``tests.csv`` (over clients), ``clients.csv`` and
    ``curves.csv``.

    Args:
        folders: Folders that contain runs, at any depth.
        output: The folder of the report.
        title: Its title.
        baseline: The variant that the others are tested against; by default FedBABU's, else the
            best one.
        order: The first variants in the report, in order.
        metric: The column of ``clients.csv`` that is tested.
        missing: Names of runs without any files yet.
        paper: Tables and figures for a paper.

    Raises:
        ConfigError: A folder or the baseline does not exist.
        DataError: No run is finished.
    """
    collection = collect(folders, order)
    if missing:
        warning = f"left out, not run yet: {'; '.join(missing)}"
        collection = replace(collection, warnings=[warning, *collection.warnings])
    conditions = collection.conditions
    summaries = [s for condition in conditions for s in summarise(collection.of(condition))]
    views = {
        view: [
            summary
            for condition in conditions
            for summary in summarise(collection.of(condition), view)
            if summary.clients or not math.isnan(summary.global_acc)
        ]
        for view in collection.views
    }
    baselines = _baselines(collection, summaries, baseline)
    tests: list[PairedTest] = []
    over_seeds: list[SeedTest] = []
    for condition in conditions:
        over_seeds += seed_tests(collection.of(condition), baselines[condition], metric)
        groups = [g for g in collection.of(condition) if any(r.clients for r in g.runs.values())]
        tests += against_baseline(groups, baselines[condition], metric)
        tests += all_pairs(groups, metric)
    write_summary(output / "summary.csv", {"seen": summaries, **views})
    write_seed_tests(output / "seed_tests.csv", over_seeds)
    write_tests(output / "tests.csv", tests)
    write_curves(output / "curves.csv", collection)
    write_clients(output / CLIENTS, collection)
    findings = ReportData(
        title, collection, summaries, views, tests, over_seeds, baselines, metric, output, _FILES
    )
    write_atomically(output / "report.html", page(findings).encode())
    for warning in collection.warnings[:_MOST_WARNED]:
        print_warning(warning)
    if (more := len(collection.warnings) - _MOST_WARNED) > 0:
        print_warning(f"{more} more in the report")
    _print_summary(summaries, output)
    options = paper or PaperOptions()
    for file in write_paper(output, collection, over_seeds, baselines, options, metric):
        print(f"  {file}")


def _baselines(
    collection: Collection, summaries: Sequence[Summary], wanted: str | None
) -> dict[str, str]:
    if wanted is not None and wanted not in collection.variants:
        raise ConfigError(
            f"unknown baseline {wanted!r}.{did_you_mean(wanted, collection.variants)} "
            f"The variants are: {', '.join(collection.variants)}."
        )
    chosen: dict[str, str] = {}
    for condition in collection.conditions:
        groups = collection.of(condition)
        mine = [summary for summary in summaries if summary.condition == condition]
        fedbabu = [group.variant for group in groups if group.algorithm == "FedBABU"]
        given = [group.variant for group in groups if group.variant == wanted]
        chosen[condition] = next(iter([*given, *fedbabu]), best(mine))
    return chosen


def _study_in(folder: Path) -> dict[str, Any]:
    """Return the content of the study file in a folder; empty if there is none."""
    try:
        return load_yaml(folder / "study.yaml")
    except FedLightningError:
        return {}


def _print_summary(summaries: Sequence[Summary], output: Path) -> None:
    width = max(len(_name(summary)) for summary in summaries)
    metric = summaries[0].metric
    title = "accuracy in %, mean ± seeds" if metric.is_share else f"{metric.name}, mean ± seeds"
    of_clients = not all(math.isnan(s.acc_before) and math.isnan(s.acc_after) for s in summaries)
    header = "before         after  worst tenth" if of_clients else "global model"
    print(f"\n{title:<{width}}   {header}")
    for summary in summaries:
        cells = [
            _format(summary.acc_before, summary.acc_before_std_seeds, metric),
            _format(summary.acc_after, summary.acc_after_std_seeds, metric),
            _format(summary.acc_after_worst_decile, math.nan, metric),
        ]
        if not of_clients:
            cells = [_format(summary.global_acc, math.nan, metric)]
        print(f"{_name(summary):<{width}}  {'  '.join(cells)}".rstrip())
    print(f"\nreport: {output / 'report.html'}")


def _format(value: float, spread: float, metric: MainMetric) -> str:
    if math.isnan(value):
        return f"{'-':>12}"
    if not metric.is_share:
        after = f" ± {spread:.2g}" if not math.isnan(spread) else ""
        return f"{value:.4g}{after}".rjust(12)
    after = f" ± {100 * spread:.1f}" if not math.isnan(spread) else ""
    return f"{100 * value:.1f}{after}".rjust(12)


def _name(summary: Summary) -> str:
    return ", ".join(filter(None, [summary.variant, summary.condition]))


def _string(value: Any) -> str | None:
    return None if value is None else str(value)
