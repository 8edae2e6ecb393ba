"""Runs that leave one client out of a finished run, and what they show."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedlightning.cli.config.overrides import apply_overrides, callbacks_in, class_name
from fedlightning.core.metrics import PERSONAL, is_test_metric, without_view
from fedlightning.datamodules.client_roles import SAMPLE
from fedlightning.engine.run_config import MADE_IN_PYTHON
from fedlightning.errors import ConfigError, DataError
from fedlightning.storage.run_folders import trained
from fedlightning.storage.run_layout import CONFIG, METRICS, PARTITION_TABLE, WITHOUT
from fedlightning.studies.plan import PlannedRun
from fedlightning.studies.run_reader import CUT_SHORT, find_run_folders, read_run
from fedlightning.studies.study import load_yaml

__all__ = ["WholeRun", "final_test_metrics", "find_whole_run", "listed_clients", "plan_without"]

_OBSERVES = "ClientInfluence"
_PERSONALIZES = "PersonalizationCallback"
_ENDS = "fedlightning.callbacks.StopAfterRounds"


@dataclass(frozen=True)
class WholeRun:
    """A run with all its clients.

    Args:
        folder: Its folder.
        config: Its config.
        rounds: How many rounds it has done.
        metrics: Metrics on test data after the last of them.
    """

    folder: Path
    config: Mapping[str, Any]
    rounds: int
    metrics: Mapping[str, float]

    @property
    def seed(self) -> int:
        """Its seed."""
        return int(self.config["seed_everything"])

    @property
    def output(self) -> Path:
        """The folder of the runs that leave a client out."""
        return self.folder / WITHOUT


def find_whole_run(given: Path) -> WholeRun:
    """Read the run in a folder, or the one run below it.

    Raises:
        ConfigError: There is no run, there are several, or it has no seed.
        DataError: It has not measured the model of its last round on test data.
    """
    found = trained(find_run_folders([given])) if given.is_dir() else []
    if not found:
        raise ConfigError(
            f"--run {given}: no run there: a run folder has {CONFIG} and {METRICS}, such as "
            "lightning_logs/version_0."
        )
    if len(found) > 1:
        listed = ", ".join(str(folder) for folder in found[:3])
        raise ConfigError(f"--run {given}: {len(found)} runs are there ({listed}, ...); name one.")
    folder = found[0]
    if f"\n{MADE_IN_PYTHON}" in (folder / CONFIG).read_text(encoding="utf-8"):
        raise ConfigError(
            f"{folder / CONFIG}: the run was made in Python, with initial weights that a replay "
            f"cannot have. Train with python -m fedlightning fit --config {folder / CONFIG}, and "
            "take that run."
        )
    config = load_yaml(folder / CONFIG)
    seed = config.get("seed_everything")
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise ConfigError(
            f"{folder / CONFIG}: seed_everything is {seed!r}, so the run cannot be made again; "
            "train with a number."
        )
    rounds, metrics = final_test_metrics(folder)
    if not metrics:
        raise DataError(
            f"{folder / METRICS}: no metric on test data in the last round; train with validation "
            "in it (trainer.limit_val_batches, trainer.check_val_every_n_epoch)."
        )
    return WholeRun(folder, config, rounds, metrics)


def final_test_metrics(folder: Path) -> tuple[int, dict[str, float]]:
    """Return how many rounds a run has done, and the global model's test metrics after them.

    Raises:
        DataError: It has done none.
    """
    run = read_run(folder)
    if not len(run.rounds):
        raise DataError(f"{folder / METRICS}: no round is there.")
    return int(run.rounds[-1]) + 1, {
        name: float(column[-1])
        for name, column in run.metrics.items()
        if is_test_metric(name)
        and not without_view(name).startswith(PERSONAL)
        and not math.isnan(column[-1])
    }


def listed_clients(folder: Path) -> frozenset[int]:
    """Return the clients of a run, from the table of its partition; empty if they are not known."""
    path = folder / PARTITION_TABLE
    if not path.is_file():
        return frozenset()
    with path.open(encoding="utf-8", newline="") as file:
        found = frozenset(int(row["client_id"]) for row in csv.DictReader(file))
    return found if len(found) != SAMPLE else frozenset()  # of very many it lists so many


def plan_without(run: WholeRun, clients: Sequence[int]) -> list[PlannedRun]:
    """Return a run for each client, that is the whole run but for leaving that client out.

    A run that was ended early is replayed for as many rounds, of as many planned ones.

    Args:
        run: The whole run.
        clients: Ids of clients.
    """
    return [
        PlannedRun(
            f"without client {client}",
            {},
            run.seed,
            run.output / f"without_{client}",
            _config_without(run, client),
        )
        for client in clients
    ]


def _config_without(run: WholeRun, client: int) -> dict[str, Any]:
    federation, trainer = run.config.get("federation") or {}, run.config.get("trainer") or {}
    settings: dict[str, Any] = {
        "federation.leave_out": sorted({*(federation.get("leave_out") or []), client}),
        "trainer.min_epochs": run.rounds,
        "trainer.min_steps": None,
        "trainer.max_time": None,
        "trainer.logger": None,
        "trainer.enable_checkpointing": None,
        "trainer.enable_model_summary": False,
        "trainer.devices": 1,
        "ckpt_path": None,
    }
    if str(trainer.get("strategy")).startswith("ddp"):
        settings["trainer.strategy"] = "auto"
    callbacks = _that_train(callbacks_in(run.config))
    planned = trainer.get("max_epochs")
    if planned != run.rounds:  # schedules are those of the plan, whatever has ended the run
        callbacks.append({"class_path": _ENDS, "init_args": {"rounds": run.rounds}})
    if planned is None and trainer.get("max_time") is not None:
        settings["trainer.max_epochs"] = -1  # the default beside max_time
    if callbacks or trainer.get("callbacks"):
        settings["trainer.callbacks"] = callbacks
    return apply_overrides(run.config, settings)


def _that_train(callbacks: Sequence[Any]) -> list[Any]:
    """Return the callbacks but for those that observe, or end a run early."""
    kept = [item for item in callbacks if class_name(item) not in (_OBSERVES, *CUT_SHORT)]
    if "personalized/" not in str(kept):  # nothing looks at what it measures
        kept = [item for item in kept if class_name(item) != _PERSONALIZES]
    return kept
