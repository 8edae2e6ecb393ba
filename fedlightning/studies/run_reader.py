"""Read run folders: one record per run."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedlightning.cli.config.overrides import callbacks_in, class_name, settings_in
from fedlightning.core.main_metric import MainMetric
from fedlightning.core.metrics import PERSONAL, is_test_metric, without_view
from fedlightning.core.views import file_in_view
from fedlightning.errors import ConfigError, FedLightningError
from fedlightning.reporting.client_records import ClientRecord, main_metric_of, read_clients_csv
from fedlightning.storage.csv_files import read_csv
from fedlightning.storage.run_folders import newest_run
from fedlightning.storage.run_layout import (
    CLIENTS,
    CONFIG,
    METRICS,
    PARTITION,
    ROUNDS,
    WITHOUT,
)
from fedlightning.studies.run_state import RunState, is_archive, state_above
from fedlightning.studies.study import load_yaml

__all__ = [
    "CUT_SHORT", "Numbers", "Run", "final_metrics", "find_run_folders", "read_run", "read_table",
    "read_tables",
]  # fmt: skip

Numbers = npt.NDArray[np.float64]

_NOT_COMPARED = re.compile(
    r"seed_everything$|ckpt_path$|data\.(root|download|num_workers)$"
    r"|trainer\.(default_root_dir|enable_\w+|logger|callbacks\.RunMonitor)\b"
)
_OF_A_VIEW = f"_{CLIENTS}"
_VIEW_METRIC = re.compile(r"([^/]+)/(?:global|test)/[^/]+")
CUT_SHORT = ("EarlyStopping", "MainMetricStopping", "StopAfterRounds", "Timer")
"""Callbacks that may end a run before its last round."""


@dataclass(frozen=True)
class Run:
    """One run.

    Args:
        folder: The folder of its files.
        algorithm: The class of its algorithm.
        seed: ``seed_everything``.
        variant: The variant of a study; empty outside a study.
        point: The point of a study's grid.
        views: Clients before and after personalization, by the name of the evaluation view; the
            main view, of the clients that may train, has none.
        metrics: Columns of ``metrics.csv``, one value per round; nan where a cell is empty.
        rounds: The round of each row.
        seconds: Training seconds of each row's round, nan if unknown.
        cohorts: Checksums of the cohorts, by round.
        partition: Digest of the partition, empty if unknown.
        settings: All settings that a result may depend on.
        versions: Versions of the packages that it ran with.
        wall_seconds: Duration of the command, over all attempts; nan if unknown.
        unfinished: The reason why it is not finished, empty if it is.
        main_metric: The metric that counts; values called ``acc_before``, ``acc_after`` and
            ``global/acc`` below are its.
    """

    folder: Path
    algorithm: str
    seed: int
    variant: str = ""
    point: Mapping[str, str] = field(default_factory=dict)
    views: Mapping[str, Sequence[ClientRecord]] = field(default_factory=dict)
    metrics: Mapping[str, Numbers] = field(default_factory=dict)
    rounds: Numbers = field(default_factory=lambda: np.empty(0))
    seconds: Numbers = field(default_factory=lambda: np.empty(0))
    cohorts: Mapping[int, int] = field(default_factory=dict)
    partition: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    wall_seconds: float = math.nan
    unfinished: str = ""
    main_metric: MainMetric = field(default_factory=MainMetric)

    @property
    def clients(self) -> Sequence[ClientRecord]:
        """The clients that may train, before and after personalization."""
        return self.views.get("", ())

    @property
    def of_personalize(self) -> bool:
        """Whether it trained no round, but personalized another run's model."""
        return _of_personalize(self.metrics)

    @property
    def condition(self) -> str:
        """The point of the grid, for headings; empty without a grid."""
        return ", ".join(self.point.values())

    @property
    def cohorts_sum(self) -> str:
        """Eight digits that identify all cohorts; empty if these are not known."""
        text = ",".join(f"{key}:{value}" for key, value in sorted(self.cohorts.items()))
        return f"{_crc(text):08x}" if text else ""

    def last_global(self, view: str = "") -> float:
        """Return the last value of the main metric of the global model in a view."""
        return self.last(self.main_metric.column(self.metrics, view) or "")

    def last(self, metric: str) -> float:
        """Return the last known value of a metric, nan if it has none."""
        known = self.metrics.get(metric, np.empty(0))
        known = known[~np.isnan(known)]
        return float(known[-1]) if known.size else math.nan

    def values(self, name: str, view: str = "") -> Numbers:
        """Return the defined values of the main metric in a view, by client id.

        Args:
            name: ``acc_before`` or ``acc_after``.
            view: The evaluation view.
        """
        column = [self.value_of(record, name) for record in self.views.get(view, ())]
        return np.array([value for value in column if not math.isnan(value)], float)

    def value_of(self, record: ClientRecord, name: str) -> float:
        """Return the main metric of a client before (``acc_before``) or after personalization."""
        metric = self.main_metric.name
        return record.before(metric) if name == "acc_before" else record.after(metric)


def find_run_folders(folders: Sequence[Path]) -> list[Path]:
    """Return the run folders in and below some folders: those with config and metrics.

    What ``compare --rerun`` has moved to ``replaced`` is left out, and so are replays of a run
    without a client, in its ``influence``, unless it is their folder that is given.

    Raises:
        ConfigError: A folder does not exist.
    """
    found: dict[Path, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            raise ConfigError(f"{folder}: no such folder; report expects run folders.")
        for table in sorted(folder.rglob(METRICS)):
            run = table.parent
            if _is_run(run) and not _is_set_aside(run, folder):
                found.setdefault(run.resolve(), run)
    return list(found.values())


def _is_run(folder: Path) -> bool:
    return all((folder / name).is_file() for name in (CONFIG, METRICS))


def _is_set_aside(run: Path, folder: Path) -> bool:
    """Whether a run below a folder is one of those that no report shows."""
    places = [run, *run.parents]
    return any(
        (place.name == WITHOUT and _is_run(place.parent))
        or (is_archive(place) and place.parent != folder)
        for place in places[: places.index(folder)]
    )


def read_run(folder: Path) -> Run:
    """Read a run folder.

    Raises:
        FedLightningError: A file in it cannot be read; the message names it.
    """
    config = load_yaml(folder / CONFIG)
    state = state_above(folder)
    rounds, metrics = read_table(folder / METRICS)
    settings = settings_in(config)
    done = _of_personalize(metrics)
    unfinished = "" if done else _why_unfinished(config, settings, rounds, state)
    seconds, cohorts = _read_rounds(folder / ROUNDS, rounds)
    views = _read_views(folder, metrics)
    return Run(
        folder=folder,
        algorithm=str(settings.get("federation.algorithm", "FedBABU")).rpartition(".")[2],
        seed=int(config.get("seed_everything") or 0),
        variant=state.variant if state else "",
        point=dict(state.point) if state else {},
        views=views,
        metrics=metrics,
        rounds=rounds,
        seconds=seconds,
        cohorts=cohorts,
        partition=_partition_digest(folder / PARTITION),
        settings={key: value for key, value in settings.items() if not _NOT_COMPARED.match(key)},
        versions=_versions(folder, state),
        wall_seconds=state.seconds if state else math.nan,
        unfinished=unfinished,
        main_metric=_main_metric(settings, views, metrics),
    )


def read_tables(folder: Path) -> Run:
    """Read the tables of a run folder that has no config; settings and seed are unknown.

    Raises:
        FedLightningError: A table cannot be read; the message names it.
        OSError: There is no table of metrics.
    """
    rounds, metrics = read_table(folder / METRICS)
    seconds, cohorts = _read_rounds(folder / ROUNDS, rounds)
    views = _read_views(folder, metrics)
    return Run(
        folder=folder,
        algorithm="",
        seed=0,
        views=views,
        metrics=metrics,
        rounds=rounds,
        seconds=seconds,
        cohorts=cohorts,
        main_metric=_main_metric({}, views, metrics),
    )


def _main_metric(
    settings: Mapping[str, Any],
    views: Mapping[str, Sequence[ClientRecord]],
    metrics: Mapping[str, Numbers],
) -> MainMetric:
    """Return the metric that counts: as the run says, or as it has chosen it."""
    given = settings.get("federation.main_metric")
    mode = settings.get("federation.main_metric_mode")
    records = [record for of_view in views.values() for record in of_view]
    found = main_metric_of(records, None, mode) if records else None
    if given is not None:
        return MainMetric.chosen([], str(given), mode)
    if found is not None and any(record.has(found.name) for record in records):
        return found
    of_global = [
        name
        for name in metrics
        if without_view(name) == name and is_test_metric(name) and not name.startswith(PERSONAL)
    ]
    return MainMetric.chosen(of_global, None, mode)


def read_table(path: Path) -> tuple[Numbers, dict[str, Numbers]]:
    """Return the rounds, and each column; a torn last line is left out."""
    header, whole = read_csv(path)
    header = header or ["round"]
    table = np.array([[_number(cell) for cell in row] for row in whole], dtype=float)
    table = table.reshape(len(whole), len(header))
    columns = {name: table[:, at] for at, name in enumerate(header)}
    return columns.pop("round", np.arange(len(whole), dtype=float)), columns


def _read_rounds(path: Path, rounds: Numbers) -> tuple[Numbers, dict[int, int]]:
    if not path.is_file():
        return np.full(len(rounds), math.nan), {}
    numbers, columns = read_table(path)
    at = {int(number): index for index, number in enumerate(numbers)}
    seconds = columns.get("seconds", np.full(len(numbers), math.nan))
    sums = columns.get("cohort_crc32", np.empty(0))
    return (
        np.array([seconds[at[int(r)]] if int(r) in at else math.nan for r in rounds], float),
        {int(number): int(value) for number, value in zip(numbers, sums, strict=False)},
    )


def _read_views(folder: Path, metrics: Mapping[str, Numbers]) -> dict[str, list[ClientRecord]]:
    """Return the clients of each view; a view may have metrics of the global model alone."""
    found = (_VIEW_METRIC.fullmatch(name) for name in metrics)
    names = {match[1] for match in found if match is not None}
    names |= {path.name.removesuffix(_OF_A_VIEW) for path in folder.glob(f"?*{_OF_A_VIEW}")}
    paths = {name: folder / file_in_view(name, CLIENTS) for name in ("", *sorted(names))}
    return {name: read_clients_csv(p) if p.is_file() else [] for name, p in paths.items()}


def _why_unfinished(
    config: Mapping[str, Any],
    settings: Mapping[str, Any],
    rounds: Numbers,
    state: RunState | None,
) -> str:
    if state is not None:
        return "" if state.state == "done" else f"{state.state} {state.error}".strip()
    wanted = (config.get("trainer") or {}).get("max_epochs")
    cut = any(class_name(each) in CUT_SHORT for each in callbacks_in(config)) or any(
        settings.get(f"trainer.{key}") not in (None, -1) for key in ("max_steps", "max_time")
    )
    done = len(rounds)
    if isinstance(wanted, int) and 0 < done < wanted and not cut:
        return f"{done} of {wanted} rounds"
    return "" if done else "no round"


def _of_personalize(metrics: Mapping[str, Numbers]) -> bool:
    """Whether all metrics are of personalization; those of rounds have at least their bytes."""
    return bool(metrics) and all(without_view(name).startswith(PERSONAL) for name in metrics)


def _partition_digest(path: Path) -> str:
    try:
        return str(json.loads(path.read_text(encoding="utf-8")).get("digest", ""))
    except (OSError, ValueError, AttributeError):
        return ""


def _versions(folder: Path, state: RunState | None) -> dict[str, str]:
    if state is not None and state.versions:
        return dict(state.versions)
    with (folder / CONFIG).open(encoding="utf-8") as file:
        found = re.match(r"# pytorch_lightning==(\S+)", file.readline())
    return {"pytorch-lightning": found[1]} if found else {}


def _number(cell: str) -> float:
    try:
        return float(cell) if cell else math.nan
    except ValueError:
        return math.nan


def _crc(text: str) -> int:
    import zlib

    return zlib.crc32(text.encode())


def read_runs(folders: Sequence[Path]) -> Iterator[tuple[Path, Run | None, str]]:
    """Yield each folder with its run, or with the reason why it cannot be read."""
    for folder in folders:
        try:
            yield folder, read_run(folder), ""
        except (FedLightningError, OSError) as error:
            yield folder, None, str(error)


def final_metrics(folder: Path) -> list[tuple[str, float]]:
    """Return the last values of a run's main metric on test data, as far as it has any.

    Args:
        folder: The folder that holds ``lightning_logs``.
    """
    found = newest_run(folder)
    if found is None:
        return []
    try:
        run = read_run(found)
    except (FedLightningError, OSError):
        return []
    names = sorted(filter(is_test_metric, run.main_metric.columns(run.metrics)))
    return [(name, value) for name in names if not math.isnan(value := run.last(name))]
