"""The runs of a study: every variant at every point of the grid with every seed."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedlightning.cli.config.overrides import apply_overrides, settings_in
from fedlightning.errors import ConfigError
from fedlightning.studies.study import Study

__all__ = ["RUNS", "PlannedRun", "changed_settings", "check_folders", "plan", "settings_digest"]

RUNS = "runs"
"""The folder of the runs, in that of a study."""

# Places of data and results, and console output: no result depends on these.
_FREE = (
    "data.root", "data.download", "data.num_workers", "trainer.default_root_dir",
    "trainer.enable_progress_bar", "trainer.enable_model_summary", "trainer.logger",
)  # fmt: skip


@dataclass(frozen=True)
class PlannedRun:
    """One run of a study.

    Args:
        variant: Name of the variant.
        point: The name of its grid point on each axis.
        seed: ``seed_everything``.
        folder: Its folder, ``runs/<variant>/<point>/seed_<n>`` in the study's folder.
        config: The config that ``fit`` runs.
    """

    variant: str
    point: Mapping[str, str]
    seed: int
    folder: Path
    config: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The run's name, for messages.

        Example:
            >>> PlannedRun("FedAvg", {"data.batch_size": "batch_size=5"}, 0, Path(), {}).name
            'FedAvg, batch_size=5, seed 0'
        """
        return ", ".join([self.variant, *self.point.values(), f"seed {self.seed}"])

    @property
    def digest(self) -> str:
        """A digest of the settings that results depend on."""
        return settings_digest(self.config)

    @property
    def rounds(self) -> int | None:
        """The number of rounds in the config, ``None`` if it is not a number."""
        rounds = (self.config.get("trainer") or {}).get("max_epochs")
        return rounds if isinstance(rounds, int) and rounds > 0 else None


def plan(study: Study, overrides: Mapping[str, Any] | None = None) -> list[PlannedRun]:
    """Return the runs of a study, ordered by seed first.

    Args:
        study: The study.
        overrides: Settings of the command line, applied to each run.

    Raises:
        ConfigError: A variant sets what the grid varies, or two runs would share a folder.

    Example:
        >>> variants = {"A": {"model.lr": 1}, "B": {"model.lr": 2}}
        >>> study = Study("s", Path("out"), {"model": "MLP"}, variants, (0, 1))
        >>> [run.folder.as_posix() for run in plan(study)][:2]
        ['out/runs/A/seed_0', 'out/runs/B/seed_0']
    """
    for name, settings in study.variants.items():
        for axis, points in study.grid.items():
            if clash := {key for point in points.values() for key in point} & set(settings):
                raise ConfigError(
                    f"variants.{name} sets {min(clash)}, which grid.{axis} varies; keep it in one "
                    "of the two."
                )
    runs: list[PlannedRun] = []
    axes = [list(points) for points in study.grid.values()]
    for seed, variant, names in itertools.product(
        study.seeds, study.variants, itertools.product(*axes)
    ):
        point = dict(zip(study.grid, names, strict=True))
        config: dict[str, Any] = dict(study.base)
        for axis, name in point.items():
            config = apply_overrides(config, study.grid[axis][name])
        config = _apply(config, study.variants[variant], f"variants.{variant}")
        config = _apply(config, overrides or {}, "command line")
        config = {"seed_everything": seed, **config} | {"seed_everything": seed}
        parts = [slug(variant), *([slug(",".join(names))] if names else []), f"seed_{seed}"]
        folder = study.output.joinpath(RUNS, *parts)
        runs.append(PlannedRun(variant, point, seed, folder, config))
    check_folders(runs)
    return runs


def settings_digest(config: Mapping[str, Any]) -> str:
    """Return a digest of the settings in a config that results depend on.

    Example:
        >>> one = settings_digest({"data": {"class_path": "Digits", "init_args": {"root": "/a"}}})
        >>> one == settings_digest({"data": {"class_path": "Digits"}})
        True
    """
    text = json.dumps(_relevant_settings(config), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def changed_settings(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the settings that differ between two configs, in words.

    Example:
        >>> changed_settings({"model": {"lr": 0.1}}, {"model": {"lr": 0.2}})
        ['model.lr: 0.1 -> 0.2']
    """
    then, present = _relevant_settings(before), _relevant_settings(now)
    return [
        f"{key}: {then.get(key, 'not set')} -> {present.get(key, 'not set')}"
        for key in sorted(then.keys() | present.keys())
        if then.get(key) != present.get(key)
    ]


def slug(name: str) -> str:
    """Return a name as a valid folder name.

    Example:
        >>> slug("FedProx (mu 0.1)")
        'FedProx_(mu_0.1)'
    """
    return re.sub(r"[^\w.,=+()-]+", "_", name)[:120]


def _apply(config: Mapping[str, Any], settings: Mapping[str, Any], where: str) -> dict[str, Any]:
    try:
        return apply_overrides(config, settings)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def _relevant_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: value
        for key, value in settings_in(config).items()
        if not any(key == free or key.startswith(f"{free}.") for free in _FREE)
    }


def check_folders(runs: Sequence[PlannedRun]) -> None:
    """Refuse runs of which two would share a folder.

    Raises:
        ConfigError: Two would; the message has their names.
    """
    seen: dict[str, PlannedRun] = {}
    for run in runs:
        other = seen.setdefault(str(run.folder).lower(), run)
        if other is not run:
            raise ConfigError(
                f"the runs '{other.name}' and '{run.name}' would share the folder {run.folder}; "
                "choose names that differ in letters or digits."
            )
