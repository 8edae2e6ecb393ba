"""The names of the files and folders in a run folder; no other file spells them out."""

from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path

from fedlightning.core import client_names as naming

CONFIG = "config.yaml"
"""All settings of the run, resolved; it runs again as it is."""

HPARAMS = "hparams.yaml"
"""The module's hyperparameters, as Lightning's loggers save them."""

METRICS = "metrics.csv"
"""Logged metrics, one row per round."""

ROUNDS = "rounds.csv"
"""Seconds and cohort, one row per round."""

CURVES_FIGURE = "curves.png"
"""The metrics over the rounds."""

TIMELINE = "timeline.csv"
"""Client, model version and simulated times of each update, of runs with a simulated clock."""

TIMELINE_FIGURE = "timeline.png"
"""The same as a figure."""

CLIENTS = "clients.csv"
"""Accuracy and loss before and after personalization, one row per client."""

CLIENTS_FIGURE = "clients.png"
"""The same as a figure."""

FINETUNING = "finetuning.csv"
"""The main metric after each epoch of fine-tuning."""

FINETUNING_FIGURE = "finetuning.png"
"""The same as a figure."""

FORGETTING_FIGURE = "forgetting.png"
"""What the model forgets of clients, over the rounds and client by client."""

INFLUENCE = "influence.csv"
"""Estimated influence on the global model, one row per examined client."""

INFLUENCE_FIGURE = "influence.png"
"""The same as a figure."""

WITHOUT = "influence"
"""The folder of runs that leave one client out."""

LEAVE_ONE_OUT = "leave_one_out.csv"
"""In :data:`WITHOUT`: what those runs have shown, one row per client that was left out."""

LEAVE_ONE_OUT_FIGURE = "leave_one_out.png"
"""The same as a figure, beside the estimates if there are any."""

PARTITION = "partition.json"
"""Which client has which example; ``PartitionFile`` reads it."""

PARTITION_TABLE = "partition.csv"
"""Examples of each class, one row per client."""

PARTITION_FIGURE = "partition.png"
"""The same as a figure."""

ENDED = "ended.json"
"""Why a run ended before its last round; one that is resumed or complete has none."""

PREDICTIONS = "predictions.csv"
"""Predictions of ``Trainer.predict``, one row per test example."""

PRIVACY = "privacy.json"
"""What was released with noise, and what it has cost, of private runs."""

PRIVATE_STEPS = "private_steps.csv"
"""The private steps of each client that were released, of runs with secure noise on examples."""

CONTINUED = "continued.json"
"""In which folder a run with secure noise goes on, if that is another one."""

CHECKPOINTS = "checkpoints"
"""The folder of the checkpoints."""

LAST_CHECKPOINT = "last.ckpt"
"""The newest checkpoint, in :data:`CHECKPOINTS`."""

PREVIOUS_CHECKPOINT = "previous.ckpt"
"""The checkpoint that :data:`LAST_CHECKPOINT` has replaced."""

WEIGHTS = "model.safetensors"
"""The final global model, in :data:`CHECKPOINTS`."""

CLIENT_STATES = "personal"
"""The folder of client states that do not fit into memory; the checkpoints need it."""

PERSONAL_MODELS = "personalized"
"""The folder of the clients' own models."""

PERSONAL_INDEX = "index.json"
"""What the files in :data:`PERSONAL_MODELS` have in common, and their digests."""

NEW_PERSONAL_MODELS = f".{PERSONAL_MODELS}.new"
"""The next :data:`PERSONAL_MODELS` while it is being filled."""

OLD_PERSONAL_MODELS = f".{PERSONAL_MODELS}.old"
"""The former :data:`PERSONAL_MODELS` while it is being replaced."""


def client_names_in(run: Path) -> list[str] | None:
    """Return the names of a run's clients, from the table of its partition; None without names."""
    path = run / PARTITION_TABLE
    if not path.is_file():
        return None
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return (
        [row[naming.NAME_COLUMN] for row in rows]
        if rows and rows[0].get(naming.NAME_COLUMN)
        else None
    )


def personal_names_in(run: Path) -> dict[int, str]:
    """Return the names of the clients with models of their own, by id, from their index."""
    path = run / PERSONAL_MODELS / PERSONAL_INDEX
    try:
        named = json.loads(path.read_bytes()).get("names", {})
        return {int(client): str(name) for client, name in named.items()}
    except (ValueError, AttributeError, OSError):  # a reader of the whole index says why
        return {}


def remove_unfinished(run: Path) -> None:
    """Remove the half-made personal models of a killed process; the former ones stay, or return.

    No other process may be writing there.
    """
    shutil.rmtree(run / NEW_PERSONAL_MODELS, ignore_errors=True)
    if not (run / OLD_PERSONAL_MODELS).exists():
        return
    if (run / PERSONAL_MODELS).exists():
        shutil.rmtree(run / OLD_PERSONAL_MODELS, ignore_errors=True)
    else:
        os.replace(run / OLD_PERSONAL_MODELS, run / PERSONAL_MODELS)
