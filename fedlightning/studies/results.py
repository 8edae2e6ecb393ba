"""The finished runs by condition, variant and seed, and warnings about them."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from fedlightning.core.main_metric import MainMetric
from fedlightning.errors import DataError
from fedlightning.storage.run_layout import METRICS
from fedlightning.studies.run_reader import Run, find_run_folders, read_runs

__all__ = ["Collection", "Group", "collect", "differing_settings"]


@dataclass(frozen=True)
class Group:
    """The runs of one variant under one condition, one per seed.

    Args:
        condition: The point of the grid; empty without a grid.
        variant: The variant.
        runs: The runs, by seed.
    """

    condition: str
    variant: str
    runs: Mapping[int, Run]

    @property
    def algorithm(self) -> str:
        """The class of the algorithm."""
        return next(iter(self.runs.values())).algorithm

    @property
    def main_metric(self) -> MainMetric:
        """The metric that counts."""
        return next(iter(self.runs.values())).main_metric


@dataclass(frozen=True)
class Collection:
    """All finished runs.

    Args:
        groups: By condition, then variant, in the order of the study.
        warnings: What a reader should know.
    """

    groups: Sequence[Group]
    warnings: Sequence[str] = field(default=())

    @property
    def conditions(self) -> list[str]:
        """The conditions, in order."""
        return list(dict.fromkeys(group.condition for group in self.groups))

    @property
    def variants(self) -> list[str]:
        """The variants, in order."""
        return list(dict.fromkeys(group.variant for group in self.groups))

    @property
    def runs(self) -> list[Run]:
        """All runs."""
        return [run for group in self.groups for run in group.runs.values()]

    @property
    def main_metric(self) -> MainMetric:
        """The metric that counts, one for all runs."""
        return self.groups[0].main_metric

    @property
    def views(self) -> list[str]:
        """The names of the evaluation views beside the main one."""
        return sorted({name for run in self.runs for name in run.views if name})

    def of(self, condition: str) -> list[Group]:
        """Return the groups of one condition."""
        return [group for group in self.groups if group.condition == condition]


def collect(folders: Sequence[Path], order: Sequence[str] = ()) -> Collection:
    """Read all runs in and below some folders.

    Runs that are unfinished or unreadable are left out and named, and so are the folders of
    ``personalize``, which are not runs beside the one whose model they personalize. A run outside a
    study is named by its algorithm, and by the settings that differ from other runs of it.

    Args:
        folders: The folders to search.
        order: The first variants in the report, in order; others follow.

    Raises:
        ConfigError: A folder does not exist.
        DataError: No run is finished.
    """
    warnings: list[str] = []
    runs: list[Run] = []
    for folder, run, problem in read_runs(find_run_folders(folders)):
        if run is None:
            warnings.append(f"left out, cannot be read: {folder}: {problem}")
        elif run.of_personalize:
            warnings.append(f"left out, of personalize, without a round of its own: {folder}")
        elif run.unfinished:
            warnings.append(f"left out, not finished: {folder}: {run.unfinished}")
        else:
            runs.append(run)
    if not runs:
        raise DataError(
            f"no finished run in {', '.join(map(str, folders))}."
            + (f" {warnings[0]}" if warnings else " A run folder has config.yaml and metrics.csv.")
        )
    groups = _grouped(_with_names(_with_one_metric(runs, warnings)), order, warnings)
    return Collection(groups, [*warnings, *_inconsistencies(groups)])


def differing_settings(runs: Iterable[Run]) -> list[str]:
    """Return the settings that are not the same in all runs, in alphabetical order."""
    given = [run.settings for run in runs]
    keys = {key for settings in given for key in settings}
    return sorted(
        key for key in keys if len({_as_text(settings.get(key)) for settings in given}) > 1
    )


def _with_one_metric(runs: Sequence[Run], warnings: list[str]) -> list[Run]:
    """Return the runs with the main metric of most of them."""
    counts = Counter(run.main_metric for run in runs)
    metric = max(counts, key=lambda each: counts[each])
    if len(counts) > 1:
        named = ", ".join(f"{each.name} in {count}" for each, count in counts.items())
        warnings.append(f"runs have several main metrics ({named}); {metric.name} is compared")
    return [replace(run, main_metric=metric) for run in runs]


def _with_names(runs: Sequence[Run]) -> list[Run]:
    nameless: dict[str, list[Run]] = {}
    for run in runs:
        if not run.variant:
            nameless.setdefault(run.algorithm, []).append(run)
    names: dict[Path, str] = {}
    for algorithm, same in nameless.items():
        keys = differing_settings(same)
        for run in same:
            apart = [f"{_last(key)}={_as_text(run.settings.get(key))}" for key in keys[:4]]
            names[run.folder] = f"{algorithm} ({', '.join(apart)})" if apart else algorithm
    return [replace(run, variant=names.get(run.folder, run.variant)) for run in runs]


def _grouped(runs: Sequence[Run], order: Sequence[str], warnings: list[str]) -> list[Group]:
    found: dict[tuple[str, str], dict[int, Run]] = {}
    for run in runs:
        other = found.get((run.condition, run.variant), {}).get(run.seed)
        if other is not None and differing_settings([run, other]):
            name = f"{run.variant} ({_place(run.folder)})"
            warnings.append(f"other settings under the same name: {run.folder} is called {name}")
            run = replace(run, variant=name)
            other = None
        seeds = found.setdefault((run.condition, run.variant), {})
        if other is not None:
            warnings.append(
                f"two runs of {run.variant}, seed {run.seed}: {other.folder} and {run.folder}; the "
                "newer one counts"
            )
            run = max(run, other, key=lambda each: (each.folder / METRICS).stat().st_mtime)
        seeds[run.seed] = run
    places = {name: at for at, name in enumerate(order)}
    conditions = sorted({condition for condition, _ in found}, key=_by_numbers)
    appearance = list(dict.fromkeys(variant for _, variant in found))

    def place(key: tuple[str, str]) -> tuple[int, float, int]:
        condition, variant = key
        return (
            conditions.index(condition),
            places.get(variant, math.inf),
            appearance.index(variant),
        )

    return [Group(*key, dict(sorted(found[key].items()))) for key in sorted(found, key=place)]


def _inconsistencies(groups: Sequence[Group]) -> list[str]:
    """Return warnings about runs that differ in partition, cohorts, seeds or versions."""
    warnings: list[str] = []
    for condition in dict.fromkeys(group.condition for group in groups):
        here = [group for group in groups if group.condition == condition]
        where = f"{condition}: " if condition else ""
        seeds = sorted({seed for group in here for seed in group.runs})
        for group in here:
            if missing := [str(seed) for seed in seeds if seed not in group.runs]:
                warnings.append(f"{where}{group.variant} has no run with seed {', '.join(missing)}")
        for seed in seeds:
            runs = {group.variant: group.runs[seed] for group in here if seed in group.runs}
            for what, digests in (
                ("partitions", {name: run.partition for name, run in runs.items()}),
                ("cohorts", {name: run.cohorts_sum for name, run in runs.items()}),
            ):
                if len(set(filter(None, digests.values()))) > 1:
                    named = ", ".join(f"{name} {text[:8]}" for name, text in digests.items())
                    hint = "; their clients are not compared" if what == "partitions" else ""
                    warnings.append(f"{where}seed {seed}: different {what}: {named}{hint}")
        if silent := [group.variant for group in here if not _has_clients(group)]:
            warnings.append(
                f"{where}without clients.csv (no PersonalizationCallback), so only the global "
                f"model's mean is known: {', '.join(silent)}"
            )
    versions = {
        (name, version) for group in groups for run in group.runs.values()
        for name, version in run.versions.items()
    }  # fmt: skip
    for name in sorted({name for name, _ in versions}):
        several = sorted(version for other, version in versions if other == name)
        if len(several) > 1:
            warnings.append(f"runs with different versions of {name}: {', '.join(several)}")
    return warnings


def _has_clients(group: Group) -> bool:
    return any(run.clients for run in group.runs.values())


def _place(folder: Path) -> str:
    """Return the parts of a path that distinguish run folders."""
    parts = [part for part in folder.parts if part not in ("runs", "lightning_logs", "/", "..")]
    return "/".join(parts[-4:])


def _by_numbers(name: str) -> list[tuple[int, float, str]]:
    """Return a sort key that orders numbers within names by size."""
    parts = re.split(r"(\d+(?:\.\d+)?)", name)
    return [
        (0, float(part), "") if at % 2 else (1, 0.0, part.lower()) for at, part in enumerate(parts)
    ]


def _last(key: str) -> str:
    return key.rpartition(".")[2]


def _as_text(value: object) -> str:
    return "not set" if value is None else str(value)
