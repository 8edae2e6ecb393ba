"""What a search has found: the table of trials, the budget, and the study to compare."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from fedlightning.core.main_metric import MainMetric
from fedlightning.errors import FederationError
from fedlightning.storage.csv_files import write_csv
from fedlightning.storage.files import write_atomically
from fedlightning.studies.study import with_overrides
from fedlightning.studies.tuning.search import Search

__all__ = ["TRIALS", "TUNED", "Trial", "Tuned", "budget_lines", "results_of", "write_results"]

TRIALS = "trials.csv"
TUNED = "study.yaml"
_STATES = {"COMPLETE": "complete", "PRUNED": "stopped", "FAIL": "failed"}


@dataclass(frozen=True)
class Trial:
    """One trial.

    Args:
        variant: The variant.
        number: Its number, from 0.
        state: ``complete``, ``stopped`` early, ``failed``, or ``unfinished``.
        rounds: Rounds that count; a trial that was stopped may have run a little longer.
        seconds: Duration of its process.
        value: The main metric on validation data, as measured last in these rounds: a mean over the
            clients that have such data, without those whose value is undefined (nan). Where it is
            undefined at all of them the trial has failed, whatever it was before.
        settings: What it took in the search space.
        error: Why it failed.
        undefined: Number of clients that the value leaves out, because theirs is undefined.
    """

    variant: str
    number: int
    state: str
    rounds: int
    seconds: float
    value: float
    settings: Mapping[str, Any]
    error: str = ""
    undefined: int = 0


@dataclass(frozen=True)
class Tuned:
    """The result of a search.

    Args:
        study: The file of the study with the chosen settings, for ``compare``.
        metric: What was chosen by, a column of ``metrics.csv``.
        mode: ``max`` if more of it is better, ``min`` if less is.
        trials: All trials.
        chosen: The settings of each variant.
    """

    study: Path
    metric: str
    mode: str
    trials: Sequence[Trial]
    chosen: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def best(self, variant: str) -> Trial:
        """Return a variant's best trial; of equal ones the first.

        Means over fewer clients come after those over more, however good: a trial gains nothing by
        clients at which it has diverged. A value that no model can define, such as an AUC on one
        class, is missing in all trials alike.
        """
        sign = -1 if self.mode == "min" else 1
        complete = [t for t in self.trials if t.variant == variant and t.state == "complete"]
        return max(complete, key=lambda t: (-t.undefined, sign * t.value, -t.number))


def results_of(search: Search) -> Tuned:
    """Return what a search has found.

    Raises:
        FederationError: All trials of a variant failed.
    """
    sign, metric = _measured(search)
    trials = list[Trial]()
    for variant in search.tuning.spaces:
        for record in search.trials(variant):
            facts = record.user_attrs
            state = _STATES.get(record.state.name, "unfinished")
            steps = record.intermediate_values
            rounds = int(facts.get("rounds", max(steps, default=0)))
            values = [value for step, value in sorted(steps.items()) if step <= rounds]
            value = record.value if state == "complete" else (values or [math.nan])[-1]
            trials.append(
                Trial(
                    variant,
                    record.number,
                    state,
                    rounds,
                    facts.get("seconds", math.nan),
                    sign * value,
                    facts.get("settings", {}),
                    facts.get("error", ""),
                    facts.get("undefined", 0),
                )
            )
    mode = "min" if sign < 0 else "max"
    found = Tuned(search.tuning.output / TUNED, metric, mode, trials)
    for variant in search.tuning.spaces:
        mine = [trial for trial in trials if trial.variant == variant]
        if mine and not any(trial.state == "complete" for trial in mine):
            error = next((trial.error for trial in mine if trial.error), "all were stopped")
            raise FederationError(
                f"no trial of {variant} was completed: {error}. Its trials are in "
                f"{search.tuning.output / 'trials'}."
            )
    chosen = {v: found.best(v).settings for v in search.tuning.spaces if search.trials(v)}
    return Tuned(found.study, metric, mode, trials, chosen)


def _measured(search: Search) -> tuple[int, str]:
    """Return the sign of the main metric and its column.

    A trial that failed in its first round has measured nothing, and knows neither.
    """
    for variant in search.tuning.spaces:
        for record in search.trials(variant):
            if metric := record.user_attrs.get("metric"):
                return record.user_attrs["sign"], metric
    return 1, ""


def write_results(search: Search, overrides: Mapping[str, Any], found: Tuned) -> None:
    """Write ``trials.csv`` and the study with the chosen settings.

    Args:
        search: The search.
        overrides: Settings of the command line, which are part of the written study.
        found: What it has found.
    """
    keys = list(dict.fromkeys(key for trial in found.trials for key in trial.settings))
    rows = [
        [
            trial.variant, trial.number, trial.state, trial.rounds, trial.seconds,
            "" if math.isnan(trial.value) else trial.value, trial.undefined,
            *(trial.settings.get(key, "") for key in keys), trial.error,
        ]
        for trial in found.trials
    ]  # fmt: skip
    header = ["variant", "trial", "state", "rounds", "seconds", found.metric, "undefined", *keys,
              "error"]  # fmt: skip
    write_csv(search.tuning.output / TRIALS, header, rows)
    write_atomically(found.study, _study_text(search, overrides, found).encode())


def _study_text(search: Search, overrides: Mapping[str, Any], found: Tuned) -> str:
    study, tuning = search.study, search.tuning
    notes = [
        f"{study.name}: settings chosen by {found.metric} on validation data, {found.mode}imum.",
        f"Budget of each variant: {tuning.trials} trials, run_seed {tuning.run_seed}, seed "
        f"{tuning.seed}, pruner {tuning.pruner}. Spent:",
        *(f"  {line}" for line in budget_lines(found)),
        f"All trials: {TRIALS} beside this file.",
        f"  python -m fedlightning compare --config {found.study}",
    ]
    content: dict[str, Any] = {
        "title": study.name,
        "output": str(study.output),
        "base": study.base,
        "seeds": list(study.seeds),
        "variants": {
            name: with_overrides(with_overrides(settings, overrides), found.chosen[name])
            for name, settings in study.variants.items()
        },
        "workers": study.workers,
        **({"baseline": study.baseline} if study.baseline else {}),
    }  # fmt: skip
    text: str = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    return "".join(f"# {line}\n" for line in notes) + text


def budget_lines(found: Tuned) -> list[str]:
    """Return, for each variant, what was spent and what came of it."""
    lines = []
    metric = MainMetric("acc" if found.metric.rpartition("/")[2] in ("acc", "val_acc") else "",
                        found.mode)  # fmt: skip
    for variant in found.chosen:
        mine = [trial for trial in found.trials if trial.variant == variant]
        count = {state: sum(t.state == state for t in mine) for state in _STATES.values()}
        best = found.best(variant)
        lines.append(
            f"{variant}: {len(mine)} trials ({count['complete']} complete, {count['stopped']} "
            f"stopped early, {count['failed']} failed), {sum(t.rounds for t in mine)} rounds; "
            f"best {metric.text(best.value)} in trial {best.number}"
            + (f", undefined at {best.undefined} clients" if best.undefined else "")
        )
    return lines
