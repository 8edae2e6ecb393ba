"""The tables of the report's page."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Callable, Sequence
from functools import partial

from fedlightning.core.main_metric import MainMetric
from fedlightning.reporting.figures.style import counted
from fedlightning.studies.paired_tests import PairedTest
from fedlightning.studies.report.html import DASH, MINUS, number, shown, table
from fedlightning.studies.results import Collection, differing_settings
from fedlightning.studies.run_reader import Run
from fedlightning.studies.seed_tests import SeedTest, WithinSeeds
from fedlightning.studies.statistics import Summary

__all__ = [
    "clients_tests_table",
    "conditions_table",
    "costs_table",
    "runs_table",
    "seed_tests_table",
    "settings_tables",
    "summary_table",
    "versions_table",
]

_MOST_COLUMNS = 7  # of texts of any length: more are cut off on a usual screen


def _measures(metric: MainMetric) -> dict[str, Callable[[Summary], str]]:
    """Return the columns about the main metric, by heading."""
    show, what = partial(shown, metric=metric), metric.title
    return {
        f"{what}\nbefore": lambda s: show(s.acc_before, s.acc_before_std_seeds),
        f"{what}\nafter": lambda s: show(s.acc_after, s.acc_after_std_seeds),
        "± over\nclients": lambda s: show(s.acc_after_std_clients),
        "worst\nclient": lambda s: show(s.acc_after_min),
        "p10": lambda s: show(s.acc_after_p10),
        "p90": lambda s: show(s.acc_after_p90),
        "worst\ntenth": lambda s: show(s.acc_after_worst_decile),
        "Jain\nindex": lambda s: (
            DASH if math.isnan(s.acc_after_jain) else f"{s.acc_after_jain:.3f}"
        ),
    }


def _gains(metric: MainMetric) -> dict[str, Callable[[Summary], str]]:
    show = partial(shown, metric=metric)
    more = "gain over" if metric.sign > 0 else "change from"  # less of an error is no negative gain
    return {
        f"{more}\nLocalOnly": lambda s: show(s.gain_over_local, signed=True),
        f"{more}\nFedAvg + tuning": lambda s: show(s.gain_over_fedavg_ft, signed=True),
    }


def _global(metric: MainMetric) -> dict[str, Callable[[Summary], str]]:
    return {"global\nmodel": lambda s: shown(s.global_acc, metric=metric)}


_COSTS: dict[str, Callable[[Summary], str]] = {
    "up,\nper round": lambda s: number(s.bytes_up_per_round, "B"),
    "down,\nper round": lambda s: number(s.bytes_down_per_round, "B"),
    "seconds of\ntraining": lambda s: number(s.seconds_training),
    "seconds\nin all": lambda s: number(s.seconds_wall),
    "simulated\nseconds": lambda s: number(s.seconds_simulated),
}
_STRESSED = {
    "before": "acc_before",
    "after": "acc_after",
    "worst\nclient": "acc_after_min",
    "p10": "acc_after_p10",
    "p90": "acc_after_p90",
    "worst\ntenth": "acc_after_worst_decile",
    "Jain\nindex": "acc_after_jain",
    "global\nmodel": "global_acc",
}


def summary_table(summaries: Sequence[Summary], main: bool = True) -> str:
    """Return variants by metrics; the best of a column is stressed, empty columns are left out.

    Args:
        summaries: The variants.
        main: Whether of the main view. Others have their gains here, and no accuracy of the global
            model beside one before personalization.
    """
    metric = summaries[0].metric if summaries else MainMetric()
    columns = _measures(metric)
    if main or all(math.isnan(summary.acc_before) for summary in summaries):
        columns |= _global(metric)
    return _table(summaries, columns if main else {**columns, **_gains(metric)}, metric)


def costs_table(summaries: Sequence[Summary]) -> str:
    """Return what variants gain over others, and what they cost; empty columns are left out."""
    metric = summaries[0].metric if summaries else MainMetric()
    return _table(summaries, {**_gains(metric), **_COSTS}, metric)


def _table(
    summaries: Sequence[Summary],
    columns: dict[str, Callable[[Summary], str]],
    metric: MainMetric,
) -> str:
    filled = {
        name: cell for name, cell in columns.items() if any(cell(s) != DASH for s in summaries)
    }
    rows = [
        [html.escape(s.variant), str(s.seeds), *(cell(s) for cell in filled.values())]
        for s in summaries
    ]
    best = []
    for column, name in enumerate(filled, start=2):
        field = _STRESSED.get(name.removeprefix(f"{metric.title}\n"))
        values = [getattr(s, field) for s in summaries] if field else []
        if sum(not math.isnan(value) for value in values) > 1:
            target = max(values) if name.startswith("Jain") else metric.best(values)
            best += [(row, column) for row, value in enumerate(values) if value == target]
    return table(["variant", "seeds", *filled], rows, best)


def conditions_table(summaries: Sequence[Summary]) -> str:
    """Return variants by conditions: the main metric after personalization, else the global's.

    Many conditions make several tables, one below the other.
    """
    conditions = list(dict.fromkeys(s.condition for s in summaries))
    parts = range(0, len(conditions), _MOST_COLUMNS)
    return "\n".join(
        _conditions(summaries, conditions[first : first + _MOST_COLUMNS]) for first in parts
    )


def _conditions(summaries: Sequence[Summary], conditions: Sequence[str]) -> str:
    metric = summaries[0].metric
    variants = list(dict.fromkeys(s.variant for s in summaries))
    of = {(s.variant, s.condition): s for s in summaries}
    rows, best = [], []
    results = {key: _result(summary) for key, summary in of.items()}
    for row, variant in enumerate(variants):
        cells = [html.escape(variant)]
        for column, condition in enumerate(conditions, start=1):
            summary = of.get((variant, condition))
            known = [value for (_, where), value in results.items() if where == condition]
            cells.append(
                DASH
                if summary is None
                else shown(_result(summary), summary.acc_after_std_seeds, metric=metric)
            )
            if len(known) > 1 and results.get((variant, condition)) == metric.best(known):
                best.append((row, column))
        rows.append(cells)
    header = [condition.replace(", ", ",\n") for condition in conditions]
    return table(["variant", *header], rows, best)


def seed_tests_table(tests: Sequence[SeedTest], name_both: bool, metric: MainMetric) -> str:
    """Return one row per comparison over seeds.

    Args:
        tests: The comparisons of one family.
        name_both: Whether to name the other variant, too.
        metric: What was compared.
    """
    header = ["variant", *(["against"] if name_both else [])]
    header += ["mean\ndifference", "95 % interval", "better /\nsame / worse"]
    header += ["Cohen's\nd", "Cliff's\ndelta", "p", "p, Holm", "finding"]
    rows = []
    for test in tests:
        low, high = (shown(end, signed=True, metric=metric) for end in (test.low, test.high))
        rows.append(
            [
                *([html.escape(test.variant)] + [html.escape(test.other)] * name_both),
                shown(test.mean_difference, signed=True, metric=metric),
                DASH if math.isnan(test.low) else f"{low} to {high}",
                f"{test.better} / {test.ties} / {test.worse}",
                *map(_signed, (test.cohens_d, test.cliffs_delta)),
                *map(_p, (test.p_value, test.p_holm)),
                html.escape(test.finding),
            ]
        )
    return table(header, rows, wide=[*[1] * name_both, len(header) - 1])


def clients_tests_table(
    tests: Sequence[tuple[PairedTest, WithinSeeds]], name_both: bool, metric: MainMetric
) -> str:
    """Return one row per comparison over the clients of each seed.

    Args:
        tests: The comparisons of one family: of all clients, and seed by seed.
        name_both: Whether to name the other variant, too.
        metric: What was compared.
    """
    header = ["variant", *(["against"] if name_both else [])]
    header += ["mean\ndifference", "median", "clients better /\nsame / worse"]
    header += [f"effect\n({MINUS}1 to 1)", "mean over clients", "clients differ within a seed"]
    rows = []
    for test, within in tests:
        rows.append(
            [
                *([html.escape(test.variant)] + [html.escape(test.other)] * name_both),
                shown(test.mean_difference, signed=True, metric=metric),
                shown(test.median_difference, signed=True, metric=metric),
                f"{test.better} / {test.ties} / {test.worse}",
                _signed(test.rank_biserial),
                f"better in {test.seeds_better} of {counted(test.seeds, 'seed')}",
                html.escape(_within(test, within)),
            ]
        )
    return table(header, rows, wide=[*[1] * name_both, len(header) - 2, len(header) - 1])


def _within(test: PairedTest, within: WithinSeeds) -> str:
    if not within.tested:
        return test.note or "too few clients in a seed"
    seeds = counted(within.tested, "seed")
    return f"better in {within.better}, worse in {within.worse} of {seeds}"


def settings_tables(collection: Collection) -> tuple[str, str]:
    """Return the settings that differ between the groups, and those that all runs share."""
    runs = collection.runs
    differing = differing_settings(runs)
    groups = collection.groups
    rows = []
    for group in groups:
        cells = []
        for key in differing:
            values = {_format_setting(run.settings.get(key)): None for run in group.runs.values()}
            cells.append("<br>".join(html.escape(value) for value in values))
        names = filter(None, [group.variant, group.condition])
        rows.append([html.escape(", ".join(names)), *cells])
    keys = [key.replace(".", ".\n", 1) for key in differing]
    narrow = len(keys) <= _MOST_COLUMNS
    if not narrow:
        rows = [[name, "<br>".join(_named(differing, cells))] for name, *cells in rows]
        keys = ["settings"]
    settings = runs[0].settings
    common = [
        [f"<code>{html.escape(key)}</code>", html.escape(_format_setting(value))]
        for key, value in sorted(settings.items())
        if key not in differing and value is not None
    ]
    return (
        table(["variant", *keys], rows, wide=() if narrow else [1])
        if differing
        else "<p>Only the seed.</p>",
        table(["setting", "value"], common, wide=[1]),
    )


def runs_table(runs: Sequence[Run], folder_of: Callable[[Run], str]) -> str:
    """Return one row per run: its folder, and the digests that identify it."""
    header = ["variant", "condition", "seed", "rounds", "global\nmodel", "after"]
    header += ["partition", "cohorts", "folder"]
    rows = [
        [
            html.escape(run.variant),
            html.escape(run.condition) or DASH,
            str(run.seed),
            str(len(run.rounds)),
            shown(run.last_global(), metric=run.main_metric),
            shown(_mean(run), metric=run.main_metric),
            f"<code>{html.escape(run.partition[:8]) or DASH}</code>",
            f"<code>{run.cohorts_sum or DASH}</code>",
            f"<code>{html.escape(folder_of(run))}</code>",
        ]
        for run in runs
    ]
    return table(header, rows, wide=[len(header) - 1])


def versions_table(runs: Sequence[Run]) -> str:
    """Return the versions of the packages that the runs ran with."""
    names = list(dict.fromkeys(name for run in runs for name in run.versions))
    rows = [
        [
            html.escape(name),
            html.escape(
                ", ".join(dict.fromkeys(r.versions[name] for r in runs if name in r.versions))
            ),
        ]
        for name in names
    ]
    return table(["package", "version"], rows, wide=[1])


def _mean(run: Run) -> float:
    values = run.values("acc_after")
    return float(values.mean()) if values.size else math.nan


def _result(summary: Summary) -> float:
    return summary.global_acc if math.isnan(summary.acc_after) else summary.acc_after


def _named(keys: Sequence[str], cells: Sequence[str]) -> list[str]:
    """Return the settings that a variant has, one a line."""
    return [
        f"<code>{html.escape(key)}</code>: {cell}"
        for key, cell in zip(keys, cells, strict=True)
        if cell != DASH
    ]


def _p(value: float) -> str:
    if math.isnan(value):
        return DASH
    return "&lt; 0.0001" if value < 1e-4 else f"{value:.4f}"


def _signed(value: float) -> str:
    return DASH if math.isnan(value) else f"{value:+.2f}".replace("-", MINUS)


def _format_setting(value: object) -> str:
    if value is None:
        return DASH
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= 120 else f"{text[:117]}..."
