"""The configs of trials, and what is refused before the first one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from fedlightning.cli.config.overrides import (
    apply_overrides,
    callbacks_in,
    class_name,
    settings_in,
)
from fedlightning.errors import ConfigError
from fedlightning.studies.plan import PlannedRun, check_folders, settings_digest, slug
from fedlightning.studies.study import Study
from fedlightning.studies.tuning.settings import Tuning
from fedlightning.studies.validation import Built, check_runs

__all__ = ["Personal", "check_trials", "definition_digest", "is_personal", "trial_run"]

Personal = Mapping[str, bool]
"""The classes of a run's callbacks that personalize, and whether they do so at its end alone."""


def trial_run(
    study: Study,
    tuning: Tuning,
    variant: str,
    number: int,
    values: Mapping[str, Any],
    overrides: Mapping[str, Any],
    personal: Personal,
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
        personal: The classes of the variant's callbacks that personalize.
    """
    config = apply_overrides(study.base, study.variants[variant])
    config = apply_overrides(apply_overrides(config, overrides), values)
    if tuning.pruner != "none":
        config = _personalizing_in_between(config, personal)
    config |= {"seed_everything": tuning.run_seed}
    folder = tuning.output.joinpath("trials", slug(variant), f"trial_{number:03d}")
    return PlannedRun(variant, {"trial": f"trial {number}"}, tuning.run_seed, folder, config)


def is_personal(config: Mapping[str, Any], personal: Personal) -> bool:
    """Whether a run ends with personalized models, which are then what counts."""
    return any(class_name(callback) in personal for callback in callbacks_in(config))


def _personalizing_in_between(config: Mapping[str, Any], personal: Personal) -> dict[str, Any]:
    """Return a config whose clients are personalized after each round that is validated."""
    rounds = settings_in(config).get("trainer.check_val_every_n_epoch") or 1
    given = callbacks_in(config)
    callbacks = [
        apply_overrides({"it": each}, {"it.every_n_rounds": rounds})["it"]
        if personal.get(class_name(each) or "") and not _says_when(each)
        else each
        for each in given
    ]
    if callbacks == given:
        return dict(config)
    return apply_overrides(config, {"trainer.callbacks": callbacks})


def _says_when(callback: Any) -> bool:
    return settings_in({"it": callback}).get("it.every_n_rounds") is not None


def definition_digest(
    study: Study,
    tuning: Tuning,
    variant: str,
    overrides: Mapping[str, Any],
    personal: Personal,
) -> str:
    """Return a digest of all that a variant's search depends on, but for its number of trials."""
    run = trial_run(study, tuning, variant, 0, {}, overrides, personal)
    search = {
        "config": settings_digest(run.config),
        "space": {key: repr(value) for key, value in tuning.spaces[variant].items()},
        "search": [tuning.seed, tuning.run_seed, tuning.pruner, tuning.startup_trials],
        "stopping": [tuning.warmup_rounds, tuning.reduction_factor],
    }
    return json.dumps(search, sort_keys=True)


def check_trials(
    study: Study, tuning: Tuning, overrides: Mapping[str, Any], strict: bool = False
) -> dict[str, Personal]:
    """Check the config of each variant at both ends of its search space, as ``fit`` would.

    Returns:
        The classes of each variant's callbacks that personalize.

    Raises:
        ConfigError: A setting does not exist or refuses a value, two variants would share a folder,
            or there are no validation data; the message has the variant, the key, and the way out.
    """
    if study.grid:
        raise ConfigError(
            f"tune: grid.{next(iter(study.grid))}: one condition is tuned at a time; leave grid "
            "out and set the condition under settings, in a file for each."
        )
    check_folders([trial_run(study, tuning, each, 0, {}, overrides, {}) for each in tuning.spaces])
    found: dict[str, Personal] = {}
    for variant, space in tuning.spaces.items():
        personal: dict[str, bool] = {}
        examples = {key: dimension.examples for key, dimension in space.items()}
        for at in range(max(map(len, examples.values()))):
            values = {key: ends[min(at, len(ends) - 1)] for key, ends in examples.items()}
            run = trial_run(study, tuning, variant, at, values, overrides, {})
            check_runs([replace(run, point={})], strict, partial(_look, personal))
            _check_in_between(run, tuning, personal, strict)
        found[variant] = personal
    return found


def _look(personal: dict[str, bool], name: str, built: Built) -> None:
    """Refuse a trial without values to choose by; note the callbacks that personalize."""
    from fedlightning.callbacks.personalization import PersonalizationCallback

    if not getattr(built.data, "val_fraction", 0):
        raise ConfigError(
            f"{name}: tune chooses by validation data, never by test data, and "
            f"{type(built.data).__name__} holds none out; set data.val_fraction, for instance to "
            "0.2, under settings."
        )
    tuners = [each for each in built.callbacks if isinstance(each, PersonalizationCallback)]
    if built.algorithm.keeps_parts and not tuners:
        raise ConfigError(
            f"{name}: clients of {built.algorithm.name} keep parts of the model, so 'val/...' is "
            "of a model that no client has, and nothing to choose by; add PersonalizationCallback "
            "to trainer.callbacks (with epochs: 0 the clients' own models are measured as they "
            "are)."
        )
    for each in tuners:
        of_class = type(each).__name__
        personal[of_class] = personal.get(of_class, False) or each.every_n_rounds is None


def _check_in_between(run: PlannedRun, tuning: Tuning, personal: Personal, strict: bool) -> None:
    """Check that personalization can be repeated, so that trials can be stopped by it."""
    if tuning.pruner == "none":
        return
    config = _personalizing_in_between(run.config, personal)
    if config == run.config:
        return
    try:
        check_runs([replace(run, point={}, config=config)], strict)
    except ConfigError as error:
        raise ConfigError(
            f"{error} tune sets every_n_rounds of {', '.join(personal)}, to stop trials that lag "
            "behind; tune.pruner: none leaves it as it is."
        ) from error
