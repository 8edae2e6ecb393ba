"""The report's numbers as CSV files."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, fields
from pathlib import Path
from typing import Any

import numpy as np

from fedlightning.reporting.client_records import columns_of
from fedlightning.storage.csv_files import write_csv
from fedlightning.studies.paired_tests import PairedTest
from fedlightning.studies.results import Collection
from fedlightning.studies.seed_tests import SeedTest
from fedlightning.studies.statistics import Summary

__all__ = ["write_clients", "write_curves", "write_seed_tests", "write_summary", "write_tests"]


def write_summary(path: Path, summaries: Mapping[str, Sequence[Summary]]) -> None:
    """Write one row for each variant under each condition and in each evaluation view.

    The column ``group`` names the view, ``seen`` being the main one. Accuracies are in 0..1;
    unknown values are empty cells. Columns called after accuracy are called after the main metric.
    """
    names = [field.name for field in fields(Summary) if field.name != "metric"]
    every = [(view, summary) for view, group in summaries.items() for summary in group]
    rows = [[view, *(getattr(summary, name) for name in names)] for view, summary in every]
    metric = every[0][1].metric.name if every else "acc"
    called = [re.sub(r"^acc_|_acc$", lambda f: f[0].replace("acc", metric), n) for n in names]
    _write(path, ["group", *called], rows)


def write_tests(path: Path, tests: Sequence[PairedTest]) -> None:
    """Write one row per comparison."""
    _write(path, [field.name for field in fields(PairedTest)], map(astuple, tests))


def write_seed_tests(path: Path, tests: Sequence[SeedTest]) -> None:
    """Write one row per comparison over seeds."""
    _write(path, [field.name for field in fields(SeedTest)], map(astuple, tests))


def write_clients(path: Path, collection: Collection) -> None:
    """Write one row per client, view and run, with the columns of ``clients.csv``."""
    places = [
        ([group.condition, group.variant, seed, view or "seen"], record)
        for group in collection.groups
        for seed, run in group.runs.items()
        for view, records in run.views.items()
        for record in records
    ]
    names = columns_of([record for _, record in places])
    rows = [[*place, *record.cells(names)] for place, record in places]
    _write(path, ["condition", "variant", "seed", "group", *names], rows)


def write_curves(path: Path, collection: Collection) -> None:
    """Write one row per round and run: the metrics, and the costs up to then.

    ``cumulative/seconds`` counts training, ``cumulative/bytes`` both directions.
    """
    names = list(dict.fromkeys(name for run in collection.runs for name in run.metrics))
    rows = []
    for group in collection.groups:
        for seed, run in group.runs.items():
            seconds, sent = np.cumsum(run.seconds), cumulative_bytes(run.metrics, len(run.rounds))
            for at, number in enumerate(run.rounds):
                cells = [run.metrics[name][at] if name in run.metrics else "" for name in names]
                place = [group.condition, group.variant, seed, int(number)]
                rows.append([*place, seconds[at], sent[at], *cells])
    costs = ["cumulative/seconds", "cumulative/bytes"]
    _write(path, ["condition", "variant", "seed", "round", *costs, *names], rows)


def cumulative_bytes(metrics: Any, rounds: int) -> Any:
    """Return the bytes sent up and down until the end of each round; nan if not known."""
    both = [metrics.get(f"communication/bytes_{way}") for way in ("up", "down")]
    if any(column is None for column in both):
        return np.full(rounds, math.nan)
    return np.cumsum(np.nan_to_num(both[0]) + np.nan_to_num(both[1]))


def _write(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    write_csv(path, header, (map(_blank_if_nan, row) for row in rows))


def _blank_if_nan(value: Any) -> Any:
    return "" if isinstance(value, (float, np.floating)) and math.isnan(value) else value
