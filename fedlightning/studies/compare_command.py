"""``python -m fedlightning compare``: run a study, and report on its runs."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fedlightning.cli.config.recipes import find_config
from fedlightning.cli.terminal import print_note
from fedlightning.errors import ConfigError
from fedlightning.studies.execution import carry_out, count_of
from fedlightning.studies.options import Options, read_words
from fedlightning.studies.plan import PlannedRun, plan
from fedlightning.studies.report.paper import PAPER_OPTIONS, paper_options
from fedlightning.studies.run_state import (
    RunState,
    can_resume,
    changes,
    rounds_done,
    state_of,
)
from fedlightning.studies.study import Study, load_yaml, read_study, study_source
from fedlightning.studies.validation import check_runs

__all__ = ["compare"]

_FLAGS = ("dry-run", "rerun", "no-report", "strict")
_OF_STUDY = ("output", "workers", "seeds", "baseline")
_VALUES = ("config", "only", *_OF_STUDY, *PAPER_OPTIONS)
_MOST_NAMED = 5
_HELP = """usage: python -m fedlightning compare --config STUDY [--key=value ...]

  --config STUDY     a study file, or the name of one of the package (studies/digits.yaml)
  --workers N        runs at the same time
  --seeds [0,1]      instead of the file's seeds
  --output DIR       the folder of the study
  --baseline NAME    the variant that the others are tested against
  --only PATTERN     only runs with matching names, e.g. 'FedAvg*' or '*seed 0'
  --dry-run          print what would run
  --rerun            repeat runs whose settings have changed; the old ones move to replaced/
  --no-report        do not write the report
  --tables KINDS     latex, markdown, or latex,markdown: tables for a paper
  --figures KIND     pdf, svg or png: figures for a paper
  --width WIDTH      their width: column (3.3 inches, the default), page (6.9), or inches
  --spread KIND      behind the ± in tables: sd (the default) or ci, over seeds
  --strict           refuse classes of other packages
  --KEY.KEY=VALUE    a setting of all runs, e.g. --trainer.max_epochs=2"""


def compare(words: Sequence[str]) -> int:
    """Run what is left of a study, then write the report.

    Args:
        words: The arguments after ``compare``.

    Returns:
        The exit code: 0 if all runs are done; 130 or 143 after a signal.

    Raises:
        ConfigError: The study file, or one of its configs, is refused.
        EnvironmentFailure: Another command uses the study's folder.
        FederationError: A run failed; all others have been run.
    """
    if {"-h", "--help"} & set(words):
        print(_HELP)
        return 0
    given = read_words(words, "compare", _FLAGS, _VALUES)
    path = _study_file(given)
    changes = {key: given.values[key] for key in _OF_STUDY if key in given.values}
    study = read_study(path, changes)
    study = replace(study, output=Path(os.path.normpath(study.output)))
    if "seed_everything" in given.settings:
        raise ConfigError("--seed_everything: pass --seeds=[...]; each run uses one of them.")
    paper = paper_options(given.values)
    everything = plan(study, given.settings)
    runs = _chosen(everything, given.values.get("only"))
    strict = "strict" in given.flags or os.environ.get("FEDLIGHTNING_STRICT", "0") not in ("", "0")
    check_runs(runs, strict)
    if load_yaml(path).get("tune"):
        print_note(
            f"{path} has tune: compare runs its variants as they are; python -m fedlightning tune "
            "--config writes a study with chosen settings."
        )
    if "dry-run" in given.flags:
        _print_plan(study, runs, "rerun" in given.flags)
        return 0
    ended = carry_out(
        study,
        everything,
        study_source(path, study, changes, given.settings),
        chosen=runs,
        rerun="rerun" in given.flags,
        report="no-report" not in given.flags,
        strict=strict,
        paper=paper,
    )
    return 128 + ended if ended else 0


def _study_file(given: Options) -> Path:
    config = given.values.get("config")
    files = [*([str(config)] if config is not None else []), *given.positional]
    if len(files) != 1:
        raise ConfigError(
            "compare expects one study file: python -m fedlightning compare --config study.yaml "
            "[--workers=2 ...]" + (f"; got {', '.join(files)}" if files else "")
        )
    return find_config(files[0])


def _chosen(runs: Sequence[PlannedRun], pattern: object) -> list[PlannedRun]:
    if pattern is None:
        return list(runs)
    chosen = [
        run
        for run in runs
        if fnmatch.fnmatchcase(run.name, str(pattern)) or run.variant == str(pattern)
    ]
    if not chosen:
        raise ConfigError(f"--only={pattern} matches no run; the first one is '{runs[0].name}'.")
    return chosen


def _print_plan(study: Study, runs: Sequence[PlannedRun], rerun: bool) -> None:
    print(f"{count_of(study, runs)}, {study.workers} at a time, in {study.output}")
    width = max(len(run.name) for run in runs)
    for run in runs:
        print(f"  {run.name:<{width}}  {_next_step(run, state_of(run), rerun)}")


def _next_step(run: PlannedRun, state: RunState, rerun: bool) -> str:
    if found := changes(run, state):
        what = "to be run again" if rerun else "refused without --rerun"
        return f"settings have changed ({'; '.join(found[:3])}): {what}"
    if state.state == "done":
        return "done"
    if can_resume(run.folder):
        return f"to be resumed after round {rounds_done(run.folder)}"
    return "to be run again" if state.attempts else "to be run"
