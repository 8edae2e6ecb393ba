"""What the folders of runs say while these are under way, finished or dead."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fedlightning.errors import FedLightningError
from fedlightning.storage.locks import lock_state, process_exists, study_process
from fedlightning.storage.run_folders import numbers_apart
from fedlightning.storage.run_layout import (
    CHECKPOINTS,
    CLIENTS,
    CONFIG,
    ENDED,
    HPARAMS,
    LAST_CHECKPOINT,
    METRICS,
    PARTITION_TABLE,
    ROUNDS,
    WEIGHTS,
)
from fedlightning.studies.run_reader import Run, read_run, read_tables
from fedlightning.studies.run_state import RECORD, RunState, is_archive, state_above
from fedlightning.studies.study import load_yaml

__all__ = ["RunFolders", "State", "WatchedRun", "find_runs"]

State = Literal["starting", "running", "finished", "failed", "stopped", "killed"]
"""``stopped`` by a signal, or for a reason that is not known; ``killed`` had no time to say why."""

_INSIDE_A_RUN = (METRICS, HPARAMS, PARTITION_TABLE, CHECKPOINTS)
_READ = (CONFIG, METRICS, ROUNDS, CLIENTS)
_RECENT_ROUNDS = 10


@dataclass(frozen=True)
class WatchedRun:
    """A run, as far as its folder tells.

    Args:
        name: What tells it apart from the others.
        folder: The folder of its files.
        state: What it is doing, or how it has ended.
        note: Why it has ended, or why its files cannot be read; often empty.
        run: Its tables, ``None`` before the first round or where they cannot be read.
        rounds_wanted: ``trainer.max_epochs``, ``None`` if that is not a number.
        changed: When its tables were last written, in seconds since 1970; nan before.
        examples: Training examples of each client, by name or id; empty if they are not known.
    """

    name: str
    folder: Path
    state: State
    note: str = ""
    run: Run | None = None
    rounds_wanted: int | None = None
    changed: float = math.nan
    examples: Mapping[str, int] = field(default_factory=dict)

    @property
    def rounds_done(self) -> int:
        """Number of rounds in its tables."""
        if self.run is None or self.run.of_personalize or not len(self.run.rounds):
            return 0
        return int(self.run.rounds[-1]) + 1

    @property
    def seconds_per_round(self) -> float:
        """Mean of the last ten rounds; nan if it is not known."""
        known = self.run.seconds if self.run is not None else np.empty(0)
        known = known[~np.isnan(known)][-_RECENT_ROUNDS:]
        return float(known.mean()) if known.size else math.nan

    @property
    def seconds_left(self) -> float:
        """Seconds of the rounds that are left, at the pace of the last ten; nan if unknown."""
        if self.state != "running" or self.rounds_wanted is None:
            return math.nan
        return max(0, self.rounds_wanted - self.rounds_done) * self.seconds_per_round

    @property
    def failures(self) -> dict[str, int]:
        """Failed client updates of all rounds, by cause; only causes that occurred."""
        logged = self.run.metrics if self.run is not None else {}
        prefix = "clients/failed_"
        sums = {
            name.removeprefix(prefix).replace("_", " "): int(np.nansum(values))
            for name, values in logged.items()
            if name.startswith(prefix)
        }
        return {cause: number for cause, number in sums.items() if number}

    @property
    def failed_by_round(self) -> list[tuple[int, int]]:
        """Rounds in which client updates failed, and how many."""
        if self.run is None:
            return []
        columns = [v for k, v in self.run.metrics.items() if k.startswith("clients/failed_")]
        sums = np.nansum(columns, axis=0) if columns else np.empty(0)
        pairs = zip(self.run.rounds, sums, strict=False)
        return [(int(number), int(failed)) for number, failed in pairs if failed]


def find_runs(folders: Sequence[Path]) -> Iterator[Path]:
    """Yield the folders of runs in and below some folders, also of those that have just begun.

    What a run of a study has written before its first checkpoint is found by its record. Folders
    that do not exist yet are passed over, and so are the insides of runs, and what ``compare
    --rerun`` has moved to ``replaced``, unless that is given.
    """
    seen: set[Path] = set()
    for folder in folders:
        for place, inner, files in os.walk(folder):
            found = [*files, *inner]
            of_study = RECORD in files
            path = Path(place)
            archives = {n for n in inner if path != Path(folder) and is_archive(path / n)}
            inner[:] = sorted(n for n in inner if n not in archives and n[0] != ".")
            if any(name in found for name in _INSIDE_A_RUN):
                inner.clear()
            elif not of_study or any(path.glob("*/version_*")):
                continue
            if (whole := path.resolve()) not in seen:
                seen.add(whole)
                yield path


@dataclass(frozen=True)
class _Signs:
    """What shows without reading its tables whether a run has changed.

    Args:
        files: When the files that tell of it were written, and how large they are.
        record: The record of the study that it belongs to.
        lock: Whether a process is at work in its folder.
        study_lives: Whether the process of that study is there.
    """

    files: tuple[tuple[int, int], ...]
    record: RunState | None
    lock: str
    study_lives: bool

    @classmethod
    def of(cls, path: Path) -> _Signs:
        record, last = state_above(path), path / CHECKPOINTS
        files = [path / name for name in (*_READ, ENDED)]
        files += [last / WEIGHTS, last / LAST_CHECKPOINT]
        lives = record is not None and process_exists(_study_of(path))
        return cls(tuple(map(_stamp, files)), record, lock_state(path), lives)


class RunFolders:
    """The runs in and below some folders, read again where their files have changed.

    Args:
        folders: The folders; they may appear later.

    Example:
        >>> RunFolders([getfixture("tmp_path") / "not there yet"]).read()
        []
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self.folders = tuple(folders)
        self._known: dict[Path, tuple[_Signs, WatchedRun]] = {}

    def read(self) -> list[WatchedRun]:
        """Return the runs, in the order of their folders."""
        paths = sorted(find_runs(self.folders), key=numbers_apart)
        signs = {path: _Signs.of(path) for path in paths}
        names = _told_apart({path: self._name(path, signs[path].record) for path in paths})
        found = {}
        for path in paths:
            before, run = self._known.get(path, (None, None))
            if run is None or before != signs[path]:
                run = self._read_one(path, names[path], signs[path])
            elif run.name != names[path]:
                run = replace(run, name=names[path])
            found[path] = signs[path], run
        self._known = found
        return [run for _, run in found.values()]

    def _read_one(self, path: Path, name: str, signs: _Signs) -> WatchedRun:
        run, problem = None, ""
        try:
            run = read_run(path) if (path / CONFIG).is_file() else read_tables(path)
        except FileNotFoundError:
            pass  # nothing is logged yet
        except (FedLightningError, OSError, ValueError) as error:
            problem = f"cannot be read: {error}"
        wanted = _rounds_wanted(path)
        state, note = _state(path, signs, run, wanted)
        times = [(path / each).stat().st_mtime for each in _READ if (path / each).is_file()]
        return WatchedRun(
            name=name,
            folder=path,
            state=state,
            note=note or problem,
            run=run,
            rounds_wanted=None if run is not None and run.of_personalize else wanted,
            changed=max(times, default=math.nan),
            examples=_examples(path),
        )

    def _name(self, path: Path, record: RunState | None) -> str:
        if record is not None:
            return ", ".join([record.variant, *record.point.values(), f"seed {record.seed}"])
        for folder in self.folders:
            if path.is_relative_to(folder):
                parts = [p for p in path.relative_to(folder).parts if p != "lightning_logs"]
                several = [folder.name] if len(self.folders) > 1 else []
                return "/".join([*several, *parts]) or path.resolve().name
        return path.name


def _told_apart(names: Mapping[Path, str]) -> dict[Path, str]:
    """Return names of which no two are the same: with what the folders differ in, if need be.

    Example:
        >>> list(_told_apart({Path("a/runs/0"): "FedAvg", Path("b/runs/0"): "FedAvg"}).values())
        ['FedAvg (a)', 'FedAvg (b)']
    """
    alike: dict[str, list[Path]] = {}
    for path, name in names.items():
        alike.setdefault(name, []).append(path)
    places = {
        path: place
        for paths in alike.values()
        for path, place in zip(paths, _between(paths), strict=True)
    }
    return {
        path: f"{name} ({places[path]})" if places[path] else name for path, name in names.items()
    }


def _between(paths: Sequence[Path]) -> list[str]:
    """Return of each path what lies between the parts that all begin and all end with."""
    parts = [path.absolute().parts for path in paths]
    least = min(map(len, parts))
    start = _in_common([each[:least] for each in parts])
    end = _in_common([each[start:][::-1][: least - start] for each in parts])
    return ["/".join(each[start : len(each) - end]) for each in parts]


def _in_common(parts: Sequence[Sequence[str]]) -> int:
    """Return how many parts all paths begin with."""
    same = [len(set(several)) == 1 for several in zip(*parts, strict=True)]
    return [*same, False].index(False)


def _state(path: Path, signs: _Signs, run: Run | None, wanted: int | None) -> tuple[State, str]:
    """Return what a run is doing, or how and why it has ended."""
    record = signs.record
    if signs.lock == "held":
        return "running", ""
    if record is not None and record.state in ("failed", "interrupted", "done"):
        ended: dict[str, State] = {"failed": "failed", "interrupted": "stopped", "done": "finished"}
        return ended[record.state], record.error
    if _is_complete(path, run, wanted):
        return "finished", ""
    if signs.study_lives:
        return "starting", ""
    note = _read_json(path / ENDED)
    if note:
        error = str(note.get("error", ""))
        return ("stopped" if note.get("interrupted") else "failed"), error
    if signs.lock == "left" or (record is not None and record.state == "running"):
        return "killed", "its process has ended without a word; resume it with --ckpt_path"
    return "stopped", ""


def _is_complete(path: Path, run: Run | None, wanted: int | None) -> bool:
    """Whether the final model is there, or, without checkpoints, the last round."""
    weights, last = path / CHECKPOINTS / WEIGHTS, path / CHECKPOINTS / LAST_CHECKPOINT
    if last.is_file():
        return weights.is_file() and weights.stat().st_mtime_ns >= last.stat().st_mtime_ns
    if run is None or not (path / CONFIG).is_file():
        return False
    return run.of_personalize or (wanted is not None and len(run.rounds) >= wanted)


def _study_of(path: Path) -> str:
    """Return the process of the study that a run belongs to."""
    return next((pid for above in path.parents if (pid := study_process(above))), "")


def _rounds_wanted(path: Path) -> int | None:
    try:
        rounds = (load_yaml(path / CONFIG).get("trainer") or {}).get("max_epochs")
    except (FedLightningError, AttributeError):
        return None
    return rounds if isinstance(rounds, int) and rounds > 0 else None


def _examples(path: Path) -> dict[str, int]:
    try:
        with (path / PARTITION_TABLE).open(encoding="utf-8", newline="") as file:
            return {
                row.get("client_name") or row["client_id"]: int(row["num_train"])
                for row in csv.DictReader(file)
            }
    except (OSError, KeyError, TypeError, ValueError):
        return {}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _stamp(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:
        return (0, 0)
    return (status.st_mtime_ns, status.st_size)
