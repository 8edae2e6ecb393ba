"""``python -m fedlightning tune``: choose the settings of a study's variants, for ``compare``."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedlightning.cli.config.recipes import find_config
from fedlightning.cli.terminal import print_note
from fedlightning.errors import ConfigError, FederationError
from fedlightning.storage.locks import study_lock
from fedlightning.studies.options import read_words
from fedlightning.studies.plan import PlannedRun
from fedlightning.studies.progress import Progress
from fedlightning.studies.runner import run_all
from fedlightning.studies.study import Study, load_yaml, read_study
from fedlightning.studies.tuning.results import Tuned, budget_lines, results_of, write_results
from fedlightning.studies.tuning.search import Search, optuna_or_refuse
from fedlightning.studies.tuning.settings import Tuning, read_tuning
from fedlightning.studies.tuning.trials import check_trials, trial_run

__all__ = ["tune", "tune_command"]

_FLAGS = ("dry-run", "strict")
_VALUES = ("config", "output", "trials", "workers")
_HELP = """usage: python -m fedlightning tune --config STUDY [--key=value ...]

  --config STUDY     a study file with tune, or the name of one of the package
  --trials N         trials of each variant, instead of the file's
  --workers N        trials at the same time
  --output DIR       the folder of the search; by default that of the study, with _tuning
  --dry-run          print what would be searched
  --strict           refuse classes of other packages
  --KEY.KEY=VALUE    a setting of all runs, e.g. --trainer.max_epochs=2"""


def tune_command(words: Sequence[str]) -> int:
    """Choose settings on validation data, then write the study that ``compare`` runs.

    Args:
        words: The arguments after ``tune``.

    Returns:
        The exit code: 0 when all trials have ended; 130 or 143 after a signal.

    Raises:
        ConfigError: The file, a setting or a value is refused, or there are no validation data.
        EnvironmentFailure: optuna is missing, or another command uses the folder.
        FederationError: No trial of a variant was completed.
    """
    if {"-h", "--help"} & set(words):
        print(_HELP)
        return 0
    given = read_words(words, "tune", _FLAGS, _VALUES)
    config = given.values.get("config")
    files = [*([str(config)] if config is not None else []), *given.positional]
    if len(files) != 1:
        raise ConfigError(
            "tune expects one study file: python -m fedlightning tune --config study.yaml "
            "[--trials=20 ...]" + (f"; got {', '.join(files)}" if files else "")
        )
    study, tuning = _read(find_config(files[0]), given.settings, given.values)
    strict = "strict" in given.flags or os.environ.get("FEDLIGHTNING_STRICT", "0") not in ("", "0")
    if "dry-run" in given.flags:
        check_trials(study, tuning, given.settings, strict)
        _print_plan(study, tuning)
        return 0
    found, received = _search(study, tuning, given.settings, strict)
    if found is None:
        sys.stdout.flush()
        print_note("interrupted; the same command goes on with the search.")
        return 128 + received
    print("\nchosen on validation data")
    for line in budget_lines(found):
        print(f"  {line}")
    print(f"\nstudy: {found.study}\n  python -m fedlightning compare --config {found.study}")
    return 0


def tune(
    config: str | os.PathLike[str],
    *,
    trials: int | None = None,
    workers: int | None = None,
    output: str | os.PathLike[str] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Tuned:
    """Choose each variant's settings on validation data, under one budget for all variants.

    The same as ``python -m fedlightning tune``. Called again after an interruption, it goes on.

    Args:
        config: A study file with ``tune``.
        trials: Trials of each variant, instead of the file's.
        workers: Trials at the same time.
        output: The folder of the search.
        settings: Settings of all runs, by dotted key.

    Raises:
        ConfigError: The file, a setting or a value is refused, or there are no validation data.
        EnvironmentFailure: optuna is missing, or another command uses the folder.
        FederationError: No trial of a variant was completed.
        KeyboardInterrupt: A signal ended it.

    Example:
        >>> from fedlightning.studies.tune_command import tune
        >>> tune("study.yaml", trials=20).chosen["FedAvg"]  # doctest: +SKIP
        {'model.lr': 0.0312}
    """
    values = {"trials": trials, "workers": workers, "output": output}
    given = {key: value for key, value in values.items() if value is not None}
    study, tuning = _read(find_config(os.fspath(config)), settings or {}, given)
    found, _ = _search(study, tuning, settings or {})
    if found is None:
        raise KeyboardInterrupt
    return found


def _read(
    path: Path, overrides: Mapping[str, Any], given: Mapping[str, Any]
) -> tuple[Study, Tuning]:
    if "seed_everything" in overrides:
        raise ConfigError("--seed_everything: trials use tune.run_seed; set it in the file.")
    workers = {"workers": given["workers"]} if "workers" in given else {}
    study = read_study(path, workers)
    study = replace(study, output=Path(os.path.normpath(study.output)))
    said = load_yaml(path).get("tune")
    changes = {key: given[key] for key in ("trials", "output") if key in given}
    tuning = read_tuning(study, {**said, **changes} if isinstance(said, Mapping) else said)
    first = next(iter(study.variants))
    rounds = trial_run(study, tuning, first, 0, {}, overrides, {}).rounds
    said = {**said, **changes} if isinstance(said, Mapping) else said
    return study, read_tuning(study, said, rounds)


def _search(
    study: Study, tuning: Tuning, overrides: Mapping[str, Any], strict: bool = False
) -> tuple[Tuned | None, int]:
    """Return what was found, or ``None`` and the signal that ended the search."""
    optuna_or_refuse()
    personal = check_trials(study, tuning, overrides, strict)
    with study_lock(tuning.output) as lock:
        search = Search(study, tuning, overrides, personal)
        before = search.ended_trials()
        print(
            f"{study.name}: {tuning.trials} trials of {len(tuning.spaces)} variants in "
            f"{tuning.output}" + (f"; {before} done before" if before else ""),
            flush=True,
        )
        progress = _TrialProgress(search.total, before, None)
        options = ["--strict"] if strict else []
        ended = run_all(search.runs(), study.workers, progress, lock, options, search)
        if search.refusal:
            kind = ConfigError if search.refusal.startswith("tune: ") else FederationError
            raise kind(search.refusal)
        if ended.signal:
            return None, ended.signal
        found = results_of(search)
        write_results(search, overrides, found)
    return found, 0


class _TrialProgress(Progress):
    """Prints trials as they end, and no rounds: lines about these have numbers on test data."""

    def milestone(self, run: PlannedRun, line: str) -> None:
        """Print nothing."""


def _print_plan(study: Study, tuning: Tuning) -> None:
    print(
        f"{study.name}: {tuning.trials} trials of each variant, {study.workers} at a time, "
        f"seed {tuning.run_seed}, in {tuning.output}"
    )
    for variant, space in tuning.spaces.items():
        print(f"  {variant}")
        for key, dimension in space.items():
            print(f"    {key}: {dimension}")
