"""The configs of trials, and what is refused before the first one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from fedlightning.cli.config.overrides import apply_overrides, settings_in
from fedlightning.errors import ConfigError
from fedlightning.studies.plan import PlannedRun, check_folders, settings_digest, slug
from fedlightning.studies.study import Study
from fedlightning.studies.tuning.settings import Tuning
from fedlightning.studies.validation import Built, check_runs

__all__ = ["check_trials", "definition_digest", "is_personal", "trial_run"]

_PERSONALIZATION = "trainer.callbacks.PersonalizationCallback"


def trial_run(
    study: Study,
    tuning: Tuning,
    variant: str,
    number: int,
    values: Mapping[str, Any],
    overrides: Mapping[str, Any],
) -> PlannedRun:
    """Return the run of a trial.

    Personalization, if there is any, is repeated after every round that is validated, so that a
    trial can be stopped by it; it does not change the global model.

    Args:
        study: The study.
        tuning: How it is tuned.
        variant: The variant.
        number: The trial's number.
        values: What it takes in the variant's search space.
        overrides: Settings of the command line.
    """
    config = apply_overrides(study.base, study.variants[variant])
    config = apply_overrides(apply_overrides(config, overrides), values)
    settings = settings_in(config)
    if is_personal(config) and tuning.pruner != "none":
        every = f"{_PERSONALIZATION}.every_n_rounds"
        if settings.get(every) is None:
            rounds = settings.get("trainer.check_val_every_n_epoch") or 1
            config = apply_overrides(config, {every: rounds})
    config |= {"seed_everything": tuning.run_seed}
    folder = tuning.output.joinpath("trials", slug(variant), f"trial_{number:03d}")
    return PlannedRun(variant, {"trial": f"trial {number}"}, tuning.run_seed, folder, config)


def is_personal(config: Mapping[str, Any]) -> bool:
    """Whether a run ends with personalized models, which are then what counts."""
    return settings_in(config).get(_PERSONALIZATION) is True


def definition_digest(
    study: Study, tuning: Tuning, variant: str, overrides: Mapping[str, Any]
) -> str:
    """Return a digest of all that a variant's search depends on, but for its number of trials."""
    run = trial_run(study, tuning, variant, 0, {}, overrides)
    search = {
        "config": settings_digest(run.config),
        "space": {key: repr(value) for key, value in tuning.spaces[variant].items()},
        "search": [tuning.seed, tuning.run_seed, tuning.pruner, tuning.startup_trials],
        "stopping": [tuning.warmup_rounds, tuning.reduction_factor],
    }
    return json.dumps(search, sort_keys=True)


def check_trials(
    study: Study, tuning: Tuning, overrides: Mapping[str, Any], strict: bool = False
) -> None:
    """Check the config of each variant at both ends of its search space, as ``fit`` would.

    Raises:
        ConfigError: A setting does not exist or refuses a value, two variants would share a folder,
            or there are no validation data; the message has the variant, the key, and the way out.
    """
    if study.grid:
        raise ConfigError(
            f"tune: grid.{next(iter(study.grid))}: one condition is tuned at a time; leave grid "
            "out and set the condition under settings, in a file for each."
        )
    check_folders([trial_run(study, tuning, each, 0, {}, overrides) for each in tuning.spaces])
    for variant, space in tuning.spaces.items():
        examples = {key: dimension.examples for key, dimension in space.items()}
        for at in range(max(map(len, examples.values()))):
            values = {key: ends[min(at, len(ends) - 1)] for key, ends in examples.items()}
            run = trial_run(study, tuning, variant, at, values, overrides)
            look = partial(_need_values_to_choose_by, is_personal(run.config))
            check_runs([replace(run, point={})], strict, look)


def _need_values_to_choose_by(personal: bool, name: str, built: Built) -> None:
    if not getattr(built.data, "val_fraction", 0):
        raise ConfigError(
            f"{name}: tune chooses by validation data, never by test data, and "
            f"{type(built.data).__name__} holds none out; set data.val_fraction, for instance to "
            "0.2, under settings."
        )
    if built.algorithm.keeps_parts and not personal:
        raise ConfigError(
            f"{name}: clients of {built.algorithm.name} keep parts of the model, so 'val/...' is "
            "of a model that no client has, and nothing to choose by; add PersonalizationCallback "
            "to trainer.callbacks (with epochs: 0 the clients' own models are measured as they "
            "are)."
        )
