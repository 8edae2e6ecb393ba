"""Check the runs of a study before the first one starts."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from fedlightning.cli.config.only_in_python import refuse_missing
from fedlightning.errors import ConfigError, FedLightningError
from fedlightning.storage.run_layout import CONFIG
from fedlightning.studies.plan import PlannedRun

if TYPE_CHECKING:
    from fedlightning.algorithms.algorithm import Algorithm

__all__ = ["Built", "check_runs", "config_text"]


@dataclass(frozen=True)
class Built:
    """What a run's config says, as objects.

    Args:
        module: The module.
        data: The data module.
        algorithm: The federation's algorithm.
        callbacks: The trainer's callbacks.
    """

    module: Any
    data: Any
    algorithm: Algorithm
    callbacks: Sequence[Any]


Look = Callable[[str, Built], None]
"""Gets a run's name and what has been built; raises if it refuses that."""


def check_runs(runs: Sequence[PlannedRun], strict: bool = False, look: Look | None = None) -> None:
    """Parse each config, and build model, data module and trainer from it, as ``fit`` would.

    One run of each variant at each point of the grid is checked, whatever its seed. Nothing is
    trained, and no data is read.

    Args:
        runs: The runs.
        strict: Whether configs may name classes of this package, torch and Lightning only.
        look: Checks what has been built, in addition.

    Raises:
        FedLightningError: A run is refused; the message begins with its name.
    """
    checked: set[tuple[str, ...]] = set()
    environment = dict(os.environ)
    try:
        for run in runs:
            place = (run.variant, *run.point.values())
            if place not in checked:
                checked.add(place)
                _check(run, ", ".join(place), strict, look)
    finally:  # seed_everything writes into it, and the runs would inherit its value
        os.environ.clear()
        os.environ.update(environment)


def config_text(run: PlannedRun) -> str:
    """Return a run's config as YAML."""
    text: str = yaml.safe_dump(dict(run.config), sort_keys=False, allow_unicode=True)
    return f"# {run.name}\n{text}"


def _check(run: PlannedRun, name: str, strict: bool, look: Look | None) -> None:
    if (run.config.get("trainer") or {}).get("logger") is False:
        raise ConfigError(f"{name}: trainer.logger=false leaves nothing to compare.")
    if run.config.get("ckpt_path"):
        raise ConfigError(
            f"{name}: ckpt_path: a study trains its runs from the start; leave it out."
        )
    refuse_missing(run.config, name)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / CONFIG
        path.write_text(config_text(run), encoding="utf-8")
        try:
            built = _parse(path, strict)
        except FedLightningError as error:
            text = str(error).replace(f"{path}:", "").replace(str(path), "config").strip()
            raise type(error)(f"{name}: {text}") from error
    if look is not None:
        look(name, built)


def _parse(path: Path, strict: bool) -> Built:
    from fedlightning.cli.federated_cli import FederatedCLI
    from fedlightning.cli.parser import prepare_parsing

    class Parsing(FederatedCLI):
        def fit(self, **kwargs: Any) -> None:
            """Run nothing: building the objects has checked them."""

    prepare_parsing(strict=strict)
    built = Parsing(args=["fit", "--config", str(path)])
    trainer: Any = built.trainer
    return Built(
        built.model, built.datamodule, trainer.federation.algorithm, tuple(trainer.callbacks)
    )
