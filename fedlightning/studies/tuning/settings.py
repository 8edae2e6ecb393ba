"""What a study file says under ``tune``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from fedlightning.core.validation import check_choice, check_integer
from fedlightning.errors import ConfigError, did_you_mean
from fedlightning.studies.study import Study
from fedlightning.studies.tuning.space import Dimension, read_dimension

__all__ = ["Pruner", "Tuning", "read_tuning"]

Space = Mapping[str, Dimension]
Pruner = Literal["median", "hyperband", "none"]

_KEYS = (
    "trials", "space", "variants", "seed", "run_seed", "pruner", "startup_trials", "warmup_rounds",
    "reduction_factor", "output",
)  # fmt: skip
_PRUNERS = ("median", "hyperband", "none")
_MOST_SEED = 2**32 - 1


@dataclass(frozen=True)
class Tuning:
    """How the settings of a study's variants are chosen.

    Args:
        output: The folder of the search.
        spaces: For each variant the settings that are searched.
        trials: Number of trials of each variant: the budget, the same for all.
        seed: Seed of the search.
        run_seed: ``seed_everything`` of all trials.
        pruner: ``median`` stops a trial that is worse than the median of earlier ones at the same
            round, ``hyperband`` by successive halving, ``none`` lets all trials end.
        startup_trials: Trials of a variant that ``median`` never stops, and that are drawn at
            random.
        warmup_rounds: Rounds in which no trial is stopped.
        reduction_factor: Of ``hyperband``: one of so many trials goes on.
    """

    output: Path
    spaces: Mapping[str, Space] = field(default_factory=dict)
    trials: int = 20
    seed: int = 0
    run_seed: int = 0
    pruner: Pruner = "median"
    startup_trials: int = 5
    warmup_rounds: int = 1
    reduction_factor: int = 3


def read_tuning(study: Study, given: Any, rounds: int | None = None) -> Tuning:
    """Return what a study file says under ``tune``.

    Args:
        study: The rest of the file.
        given: The content of ``tune``.
        rounds: Rounds of a run, for the default of ``warmup_rounds``, a quarter of them.

    Raises:
        ConfigError: It is refused; the message has the key.

    Example:
        >>> study = Study("s", Path("out"), {}, {"A": {}, "B": {}}, seeds=(7, 8))
        >>> tuning = read_tuning(study, {"trials": 9, "space": {"model.lr": [0.1, 0.2]}}, 40)
        >>> tuning.run_seed, tuning.warmup_rounds, sorted(tuning.spaces), tuning.output.as_posix()
        (7, 10, ['A', 'B'], 'out_tuning')
    """
    if not isinstance(given, Mapping) or not given:
        raise ConfigError(
            f"tune expects a study file with tune, such as tune: {{trials: 20, space: {{model.lr: "
            f"{{low: 0.001, high: 1.0, log: true}}}}}}; {study.name} has "
            f"{'none' if given is None else repr(given)}."
        )
    for key in given:
        if key not in _KEYS:
            raise ConfigError(
                f"tune has no key {key!r}.{did_you_mean(str(key), _KEYS)} Its keys: "
                f"{', '.join(_KEYS)}."
            )
    pruner = str(given.get("pruner", "median")).lower()
    check_choice("tune.pruner", pruner, _PRUNERS)
    output = given.get("output")
    warmup = max(1, (rounds or 0) // 4)
    return Tuning(
        output=study.output.with_name(f"{study.output.name}_tuning")
        if output is None
        else Path(str(output)).expanduser(),
        spaces=_spaces(study, given.get("space"), given.get("variants")),
        trials=_integer(given, "trials", 20, 1),
        seed=_integer(given, "seed", 0, 0, _MOST_SEED),
        run_seed=_integer(given, "run_seed", study.seeds[0], 0, _MOST_SEED),
        pruner=pruner,  # type: ignore[arg-type]  # checked above
        startup_trials=_integer(given, "startup_trials", 5, 1),
        warmup_rounds=_integer(given, "warmup_rounds", warmup, 0),
        reduction_factor=_integer(given, "reduction_factor", 3, 2),
    )


def _integer(
    given: Mapping[str, Any], key: str, default: int, least: int, most: int | None = None
) -> int:
    return check_integer(f"tune.{key}", given.get(key, default), at_least=least, at_most=most)


def _spaces(study: Study, common: Any, own: Any) -> dict[str, Space]:
    """Return each variant's space: what all have, and what it has of its own."""
    own = {} if own is None else own
    if not isinstance(own, Mapping):
        raise ConfigError(f"tune.variants must be a mapping from variants to spaces, got {own!r}.")
    for name in own:
        if name not in study.variants:
            raise ConfigError(
                f"tune.variants: {name!r} is not a variant."
                f"{did_you_mean(str(name), study.variants)} The variants are: "
                f"{', '.join(study.variants)}."
            )
    shared = _space("tune.space", common)
    spaces: dict[str, Space] = {
        name: {**shared, **_space(f"tune.variants.{name}", own.get(name))}
        for name in study.variants
    }
    if idle := [name for name, space in spaces.items() if not space]:
        raise ConfigError(
            f"tune: nothing is searched for {', '.join(idle)}; add settings that all variants have "
            "to tune.space, or leave these variants out of the file."
        )
    return spaces


def _space(where: str, given: Any) -> dict[str, Dimension]:
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise ConfigError(f"{where} must be a mapping from settings to spaces, got {given!r}.")
    return {str(key): read_dimension(f"{where}.{key}", value) for key, value in given.items()}
