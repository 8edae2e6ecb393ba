"""Carry a study out: run what is left of it in its folder, and report on its runs."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from fedlightning.cli.terminal import print_note, print_warning
from fedlightning.errors import ConfigError, FederationError
from fedlightning.storage.files import write_atomically
from fedlightning.storage.locks import study_lock
from fedlightning.storage.run_layout import METRICS
from fedlightning.studies.plan import PlannedRun
from fedlightning.studies.progress import Progress
from fedlightning.studies.report.paper import PaperOptions
from fedlightning.studies.run_state import archive, changes, rounds_done, state_of
from fedlightning.studies.runner import RunOutcomes, run_all
from fedlightning.studies.study import Study

__all__ = ["STUDY_FILE", "carry_out", "count_of", "report_on"]

STUDY_FILE = "study.yaml"
"""The study file, in the study's folder."""

_MOST_NAMED = 5


def carry_out(
    study: Study,
    everything: Sequence[PlannedRun],
    source: bytes,
    *,
    chosen: Sequence[PlannedRun] | None = None,
    rerun: bool = False,
    report: bool = True,
    strict: bool = False,
    paper: PaperOptions | None = None,
) -> int:
    """Run what is left of a study, then write the report.

    Args:
        study: The study.
        everything: All its runs.
        source: The content of its study file.
        chosen: The runs to make; ``None`` means all.
        rerun: Whether runs whose settings have changed are repeated.
        report: Whether to write the report.
        strict: Whether configs may name classes of this package, torch and Lightning only.
        paper: Tables and figures for a paper that the report writes.

    Returns:
        The signal that interrupted it; 0 if all runs are done.

    Raises:
        ConfigError: Runs have other settings than those in the folder.
        EnvironmentFailure: Another process uses the study's folder.
        FederationError: A run failed; all others have been run.
    """
    runs = list(everything if chosen is None else chosen)
    with study_lock(study.output) as lock:
        _replace_changed(study, runs, rerun)
        write_atomically(study.output / STUDY_FILE, source)
        left = [run for run in runs if state_of(run).state != "done"]
        _print_start(study, runs, left)
        ended = _run(study, runs, left, lock, strict)
        if ended.signal:
            _print_interrupted(runs)
            return ended.signal
        if report and any(state_of(run).state == "done" for run in runs):
            report_on(study, everything, paper)
    if ended.failed:
        raise FederationError(ended.failures(len(runs)))
    return 0


def count_of(study: Study, runs: Sequence[PlannedRun]) -> str:
    """Return in words how many runs a study has, and why so many."""
    parts = [f"{len(study.variants)} variants"]
    parts += [f"{len(points)} {axis}" for axis, points in study.grid.items()]
    parts.append(f"{len(study.seeds)} seed{'s' if len(study.seeds) != 1 else ''}")
    number = f"{len(runs)} run{'s' if len(runs) != 1 else ''}"
    return f"{study.name}: {number} ({' x '.join(parts)})"


def report_on(study: Study, runs: Sequence[PlannedRun], paper: PaperOptions | None = None) -> None:
    """Write the report on all runs of a study that are there."""
    from fedlightning.studies.report_command import write_report

    there = [run for run in runs if any(run.folder.rglob(METRICS))]
    write_report(
        [run.folder for run in there],
        study.output,
        title=study.name,
        baseline=study.baseline,
        order=tuple(study.variants),
        missing=[run.name for run in runs if run not in there],
        paper=paper or PaperOptions(),
    )


def _replace_changed(study: Study, runs: Sequence[PlannedRun], rerun: bool) -> None:
    """Refuse runs whose settings have changed, or archive the old ones."""
    changed = [(run, found) for run in runs if (found := changes(run, state_of(run)))]
    if changed and not rerun:
        named = [f"{run.name} ({'; '.join(found[:3])})" for run, found in changed[:_MOST_NAMED]]
        more = f", and {len(changed) - len(named)} more" if len(changed) > len(named) else ""
        raise ConfigError(
            f"{study.output} has runs with other settings: {', '.join(named)}{more}. --rerun "
            "(in Python, rerun=True) repeats them and moves the old ones to replaced/; or choose "
            "another output."
        )
    for run, _ in changed:
        print_note(f"{run.name}: the old run is now in {archive(run, study.output)}")


def _run(
    study: Study,
    runs: Sequence[PlannedRun],
    left: Sequence[PlannedRun],
    lock: int | None,
    strict: bool,
) -> RunOutcomes:
    rounds = [run.rounds for run in left]
    missing = sum(
        planned - rounds_done(run.folder)
        for planned, run in zip(rounds, left, strict=True)
        if planned is not None
    )
    progress = Progress(len(runs), len(runs) - len(left), None if None in rounds else missing)
    return run_all(left, study.workers, progress, lock, ["--strict"] if strict else [])


def _print_start(study: Study, runs: Sequence[PlannedRun], left: Sequence[PlannedRun]) -> None:
    text = f"{count_of(study, runs)} in {study.output}"
    done = len(runs) - len(left)
    print(text + (f"; {done} done before" if done else ""), flush=True)
    workers = min(study.workers, len(left))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if cores is not None and workers > cores:
        print_warning(f"workers={study.workers}, but there are {cores} cores: runs will be slower")


def _print_interrupted(runs: Sequence[PlannedRun]) -> None:
    done = sum(state_of(run).state == "done" for run in runs)
    sys.stdout.flush()
    print_note(f"interrupted: {done} of {len(runs)} runs are done; the same command resumes.")
