"""W&B by config, with the real package, offline; the CSV files are written in any case."""

from __future__ import annotations

import pytest
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger, WandbLogger

from fedlightning import FedBABU, FederatedTrainer, PersonalizationCallback
from fedlightning.reporting.csv_logger import RoundCSVLogger
from tests.toys import fit, net

# wandb 0.31 on Python 3.11
WANDB_NOISE = "ignore::DeprecationWarning"


@pytest.mark.filterwarnings(WANDB_NOISE)
def test_wandb_gets_metrics_by_round_and_a_table_of_clients(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    wandb = WandbLogger(project="fedlightning", save_dir=tmp_path)
    built = fit(
        net(), FedBABU(), rounds=3, folder=tmp_path, logger=wandb,
        callbacks=[PersonalizationCallback()],
    )  # fmt: skip
    summary = dict(wandb.experiment.summary)
    wandb.experiment.finish()
    assert summary["trainer/global_step"] == 2
    assert summary["global/acc"] == pytest.approx(float(built.callback_metrics["global/acc"]))
    assert "personalized/acc" in summary
    assert summary["clients"]["_type"] == "table-file"
    assert list(tmp_path.rglob("metrics.csv"))
    assert list(tmp_path.rglob("*.wandb"))


def test_loggers_are_csv_and_tensorboard_unless_told_otherwise(tmp_path):
    csv, board = FederatedTrainer(default_root_dir=tmp_path).loggers
    assert isinstance(csv, RoundCSVLogger)
    assert isinstance(board, TensorBoardLogger)


def test_without_tensorboard_the_csv_is_written_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("fedlightning.trainer.RequirementCache", lambda _: False)
    (csv,) = FederatedTrainer(default_root_dir=tmp_path).loggers
    assert isinstance(csv, RoundCSVLogger)


def test_a_csv_logger_is_added_before_the_users_loggers(tmp_path):
    board = TensorBoardLogger(tmp_path)
    csv, own = FederatedTrainer(default_root_dir=tmp_path, logger=board).loggers
    assert isinstance(csv, RoundCSVLogger)
    assert own is board


def test_a_csv_logger_of_the_users_own_is_left_alone(tmp_path):
    own = CSVLogger(tmp_path)
    assert FederatedTrainer(logger=[own]).loggers == [own]
