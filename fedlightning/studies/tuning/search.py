"""The search: optuna asks for trials, is told of them, and stops those that lag behind."""

from __future__ import annotations

import math
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from fedlightning.errors import ConfigError, EnvironmentFailure
from fedlightning.storage.files import os_errors_as_failures
from fedlightning.storage.run_layout import CHECKPOINTS
from fedlightning.studies.plan import PlannedRun
from fedlightning.studies.run_state import state_of
from fedlightning.studies.runner import Supervisor
from fedlightning.studies.study import Study
from fedlightning.studies.tuning.settings import Tuning
from fedlightning.studies.tuning.trials import Personal, definition_digest, is_personal, trial_run
from fedlightning.studies.tuning.validation_values import ValidationValues, read_values

__all__ = ["JOURNAL", "Search", "optuna_or_refuse"]

JOURNAL = "journal.log"
"""What optuna has been told, a line of JSON for each step."""

_DROPPED = (CHECKPOINTS, "personalized")  # of trials that have ended


def optuna_or_refuse() -> Any:
    """Return the package optuna.

    Raises:
        EnvironmentFailure: It is not installed.
    """
    try:
        import optuna
    except ImportError:
        raise EnvironmentFailure("tune needs optuna: pip install 'fedlightning[tune]'.") from None
    return optuna


class Search(Supervisor):
    """The trials of all variants of a study, in turns: trial 0 of each, then trial 1 of each.

    The next trial of a variant follows from the search's seed, the trial's number and what is known
    of the variant by then, so a search that was killed goes on as if it had not been, if trials run
    one at a time. Trials of one number start from the same random draws in all variants.

    Args:
        study: The study.
        tuning: How it is tuned.
        overrides: Settings of the command line.
        personal: The classes of each variant's callbacks that personalize.

    Attributes:
        refusal: What makes all further trials useless, empty if nothing does.

    Raises:
        ConfigError: The output folder has a search by other settings.

    Source:
        Akiba, Sano, Yanase, Ohta, Koyama. Optuna. KDD 2019. https://arxiv.org/abs/1907.10902
        Bergstra, Bardenet, Bengio, Kégl. Algorithms for Hyper-Parameter Optimization. NIPS 2011.
        Li, Jamieson, DeSalvo, Rostamizadeh, Talwalkar. Hyperband. JMLR 2018.
        https://arxiv.org/abs/1603.06560
    """

    def __init__(
        self,
        study: Study,
        tuning: Tuning,
        overrides: Mapping[str, Any],
        personal: Mapping[str, Personal],
    ) -> None:
        self.study, self.tuning, self.overrides = study, tuning, overrides
        self._personal = personal
        self.refusal = ""
        self._optuna = optuna_or_refuse()
        self._active: dict[Path, tuple[str, Any]] = {}
        self._pruned_after: dict[Path, int] = {}
        with _quiet(self._optuna), os_errors_as_failures("write", tuning.output / JOURNAL):
            tuning.output.mkdir(parents=True, exist_ok=True)
            self._storage = self._open_journal()
            self._searches = {variant: self._open(variant) for variant in tuning.spaces}

    @property
    def total(self) -> int:
        """Number of trials of all variants."""
        return self.tuning.trials * len(self.tuning.spaces)

    def trials(self, variant: str) -> list[Any]:
        """Return optuna's records of a variant's trials."""
        found: list[Any] = self._searches[variant].get_trials(deepcopy=False)
        return found

    def ended_trials(self) -> int:
        """Return how many trials of all variants have ended."""
        every = [trial for variant in self.tuning.spaces for trial in self.trials(variant)]
        return sum(trial.state.is_finished() for trial in every)

    # -- what runs next ------------------------------------------------------------------------

    def runs(self) -> Iterator[PlannedRun]:
        """Yield the run of each trial that is left, asked for when it can start."""
        for variant in self.tuning.spaces:
            for record in [t for t in self.trials(variant) if not t.state.is_finished()]:
                if not self.refusal:
                    search = self._seeded(variant, record.number)
                    trial = self._optuna.trial.Trial(search, record._trial_id)
                    yield self._begin(variant, trial)
        for number in range(self.tuning.trials):
            for variant in self.tuning.spaces:
                if len(self.trials(variant)) <= number and not self.refusal:
                    with _quiet(self._optuna):
                        trial = self._seeded(variant, number).ask()
                    yield self._begin(variant, trial)

    def _begin(self, variant: str, trial: Any) -> PlannedRun:
        with _quiet(self._optuna):
            values = trial.user_attrs.get("settings") or self._draw(variant, trial)
        run = self._run(variant, trial.number, values)
        self._active[run.folder] = (variant, trial)
        return run

    def _run(self, variant: str, number: int, values: Mapping[str, Any]) -> PlannedRun:
        personal = self._personal[variant]
        return trial_run(self.study, self.tuning, variant, number, values, self.overrides, personal)

    def _draw(self, variant: str, trial: Any) -> dict[str, Any]:
        """Return the values that a trial takes, of which a killed search may have drawn some."""
        _ = trial.relative_params  # those that are drawn together, before any is known
        values = {}
        for place, (key, dimension) in enumerate(self.tuning.spaces[variant].items(), start=1):
            self._seeded(variant, trial.number, place)
            values[key] = dimension.suggest(trial, key)
        trial.set_user_attr("settings", values)
        return values

    # -- while it runs -------------------------------------------------------------------------

    def reason_to_stop(self, run: PlannedRun) -> str:
        """Report each new round to optuna; return whether the trial is to be stopped."""
        if self.refusal:
            return "stopped"
        after = self._after_rounds(run)
        return f"stopped after round {after}: it lags behind" if after else ""

    def _after_rounds(self, run: PlannedRun) -> int:
        """Return the round after which a trial is stopped, 0 if it goes on."""
        if run.folder in self._pruned_after:
            return self._pruned_after[run.folder]
        variant, trial = self._active[run.folder]
        values = self._values(run)
        record = self.trials(variant)[trial.number]
        known = record.intermediate_values
        for number, value in values.by_round:
            if number > max(known, default=0):
                trial.report(_score(values, value), step=number)
            elif number < max(known, default=0):
                continue  # decided before the search was killed
            with _quiet(self._optuna):
                if trial.should_prune():
                    self._pruned_after[run.folder] = number
                    return number
        return 0

    def ended(self, run: PlannedRun, error: str, stopped: str, interrupted: bool) -> str:
        """Tell optuna of a trial that has ended; one that a signal has ended goes on later."""
        if interrupted or self.refusal:
            return ""
        if error and state_of(run).exit_code == EnvironmentFailure.exit_code:
            self.refusal = error  # the trial is not told of: it goes on where there is room
            return ""
        after = 0 if error else self._after_rounds(run)
        variant, trial = self._active[run.folder]
        states, values = self._optuna.trial.TrialState, self._values(run)
        score = _score(values, values.last)
        if not error and not values.column:
            self.refusal = _not_measured(values)
            return self.refusal
        trial.set_user_attr("metric", values.column)
        trial.set_user_attr("sign", values.metric.sign)
        trial.set_user_attr("rounds", after or values.rounds)
        trial.set_user_attr("undefined", values.undefined)
        trial.set_user_attr("seconds", state_of(run).seconds)
        search = self._searches[variant]
        with _quiet(self._optuna):
            if error or (math.isnan(score) and not after):
                problem = error or f"{values.column} is undefined after round {values.rounds}"
                trial.set_user_attr("error", problem)
                search.tell(trial, state=states.FAIL)
                text = f"FAILED: {problem}"
            elif after:
                search.tell(trial, state=states.PRUNED)
                text = f"stopped after round {after} of {run.rounds}: it lags behind"
            else:
                search.tell(trial, score)
                text = f"{values.column} {values.metric.text(values.last)}"
        del self._active[run.folder]
        for name in _DROPPED:
            for folder in run.folder.glob(f"*/*/{name}"):
                shutil.rmtree(folder, ignore_errors=True)
        return f"{text} ({_shown(trial.user_attrs['settings'])})"

    def _values(self, run: PlannedRun) -> ValidationValues:
        federation = run.config.get("federation") or {}
        metric, mode = federation.get("main_metric"), federation.get("main_metric_mode")
        personal = is_personal(run.config, self._personal[run.variant])
        return read_values(run.folder, personal, metric, mode)

    # -- optuna's objects ----------------------------------------------------------------------

    def _open_journal(self) -> Any:
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

        path = str(self.tuning.output / JOURNAL)
        Path(f"{path}.lock").unlink(missing_ok=True)  # of a killed search; the study's lock is held
        return JournalStorage(JournalFileBackend(path, lock_obj=JournalFileOpenLock(path)))

    def _open(self, variant: str) -> Any:
        search = self._optuna.create_study(
            storage=self._storage,
            study_name=variant,
            load_if_exists=True,
            direction="maximize",  # of a metric of which less is better, the negative
            pruner=self._pruner(variant),
        )
        digest = definition_digest(
            self.study, self.tuning, variant, self.overrides, self._personal[variant]
        )
        before = search.user_attrs.get("definition")
        if before is None:
            search.set_user_attr("definition", digest)
        elif before != digest:
            raise ConfigError(
                f"{self.tuning.output} has a search of {variant} with other settings; choose "
                "another tune.output, or remove that folder. More trials alone go on with it."
            )
        if (count := len(search.get_trials(deepcopy=False))) > self.tuning.trials:
            raise ConfigError(
                f"tune.trials={self.tuning.trials}: {self.tuning.output} has {count} trials of "
                f"{variant} already; give at least as many."
            )
        return search

    def _seeded(self, variant: str, number: int, place: int = 0) -> Any:
        """Return a variant's search, whose next draws depend on where they are made.

        Args:
            variant: The variant.
            number: The trial's number.
            place: The place of a setting in the search space, from 1; 0 for what comes before.
        """
        entropy = np.random.SeedSequence([self.tuning.seed, number, place]).generate_state(1)
        search = self._searches[variant]
        with _quiet(self._optuna):
            search.sampler = self._optuna.samplers.TPESampler(
                n_startup_trials=self.tuning.startup_trials,
                seed=int(entropy[0]),
                constant_liar=True,
            )
        return search

    def _pruner(self, variant: str) -> Any:
        tuning, pruners = self.tuning, self._optuna.pruners
        if tuning.pruner == "median":
            return pruners.MedianPruner(tuning.startup_trials, tuning.warmup_rounds + 1)
        if tuning.pruner == "hyperband":
            rounds = self._run(variant, 0, {}).rounds
            least = tuning.warmup_rounds + 1
            return pruners.HyperbandPruner(least, rounds or "auto", tuning.reduction_factor)
        return pruners.NopPruner()


def _score(values: ValidationValues, value: float) -> float:
    return values.metric.sign * value


def _shown(settings: Mapping[str, Any]) -> str:
    texts = []
    for key, value in settings.items():
        shown = f"{value:.4g}" if isinstance(value, float) else value
        texts.append(f"{key.rpartition('.')[2]}={shown}")
    return ", ".join(texts)


def _not_measured(values: ValidationValues) -> str:
    name = values.metric.name
    measured = ", ".join(values.measured) or "nothing is"
    return (
        f"tune: the main metric {name!r} is not measured on validation data ({measured}): log "
        f"'val/{name}' in validation_step, or choose another one with federation.main_metric."
    )


@contextmanager
def _quiet(optuna: Any) -> Iterator[None]:
    """Keep optuna's log, and what it says of its own experiments, off the screen."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        optuna.logging.set_verbosity(before)
