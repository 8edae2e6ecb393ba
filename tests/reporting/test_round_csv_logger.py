import csv
import pickle
import threading
from argparse import Namespace
from pathlib import Path

import pytest
import torch
import yaml
from pytorch_lightning import Trainer
from pytorch_lightning.demos.boring_classes import BoringModel
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.utilities import rank_zero_only

from fedlightning.errors import ConfigError
from fedlightning.reporting.csv_logger import RoundCSVLogger


def test_it_is_a_csv_logger_so_that_the_trainers_log_dir_is_the_versions_folder(tmp_path):
    logger = RoundCSVLogger(tmp_path)
    trainer = Trainer(logger=logger, enable_progress_bar=False, accelerator="cpu")
    assert isinstance(logger, CSVLogger)
    assert trainer.log_dir == str(tmp_path / "lightning_logs" / "version_0")
    assert logger.save_dir == str(tmp_path)
    assert (logger.name, logger.version) == ("lightning_logs", 0)


def test_one_row_a_round_and_no_column_for_epoch_or_step(tmp_path):
    logger = RoundCSVLogger(tmp_path)
    logger.log_metrics({"train/loss": 2.0, "epoch": 0, "step": 9, "round": 7}, step=0)
    logger.log_metrics({"global/acc": torch.tensor(0.5), "epoch": 0}, step=0)
    logger.log_metrics({"train/loss": 1.0, "epoch": 1}, step=1)
    assert _text(logger) == "round,train/loss,global/acc\n0,2.0,0.5\n1,1.0,\n"


def test_metrics_without_a_step_begin_a_new_row(tmp_path):
    logger = RoundCSVLogger(tmp_path)
    logger.log_metrics({"loss": 2.0})
    logger.log_metrics({"loss": 1.0})
    assert _text(logger) == "round,loss\n0,2.0\n1,1.0\n"


def test_a_log_of_axes_alone_makes_no_row(tmp_path):
    logger = RoundCSVLogger(tmp_path)
    logger.log_metrics({"epoch": 3}, step=3)
    logger.save()
    assert not Path(logger.log_dir, "metrics.csv").exists()


def test_the_prefix_stands_before_every_metric(tmp_path):
    logger = RoundCSVLogger(tmp_path, prefix="a")
    logger.log_metrics({"loss": 2.0, "epoch": 0}, step=0)
    assert _text(logger) == "round,a-loss\n0,2.0\n"


def test_rounds_wait_for_save_when_they_are_flushed_rarely(tmp_path):
    logger = RoundCSVLogger(tmp_path, flush_logs_every_n_steps=10)
    logger.log_metrics({"loss": 2.0}, step=0)
    assert not Path(logger.log_dir, "metrics.csv").exists()
    logger.save()
    assert _text(logger) == "round,loss\n0,2.0\n"


def test_finalize_writes_what_waits(tmp_path):
    logger = RoundCSVLogger(tmp_path, flush_logs_every_n_steps=10)
    logger.log_metrics({"loss": 2.0}, step=0)
    logger.finalize("success")
    assert _text(logger) == "round,loss\n0,2.0\n"


def test_nothing_is_made_before_the_first_use_of_the_version(tmp_path):
    logger = RoundCSVLogger(tmp_path)
    logger.finalize("success")
    assert list(tmp_path.iterdir()) == []
    assert logger.version == 0
    assert (tmp_path / "lightning_logs" / "version_0").is_dir()


def test_loggers_used_together_get_folders_of_their_own(tmp_path):
    barrier, loggers = threading.Barrier(8), [RoundCSVLogger(tmp_path) for _ in range(8)]

    def use(logger):
        barrier.wait()
        logger.log_metrics({"loss": 1.0}, step=0)

    threads = [threading.Thread(target=use, args=(logger,)) for logger in loggers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(logger.version for logger in loggers) == list(range(8))
    assert len(list(tmp_path.glob("lightning_logs/version_*/metrics.csv"))) == 8


@pytest.mark.parametrize(
    ("name", "version", "folder"),
    [
        ("runs", 3, "runs/version_3"),
        ("runs", "baseline", "runs/baseline"),
        (None, None, "version_0"),
    ],
)
def test_name_and_version_make_the_folder(tmp_path, name, version, folder):
    logger = RoundCSVLogger(tmp_path, name=name, version=version)
    assert logger.log_dir == str(tmp_path / folder)


def test_a_version_that_exists_keeps_its_rows_and_a_round_done_again_replaces_its_row(tmp_path):
    first = RoundCSVLogger(tmp_path)
    for round_ in range(3):
        first.log_metrics({"loss": float(round_), "acc": 0.5}, step=round_)
    second = RoundCSVLogger(tmp_path, version=first.version)
    second.log_metrics({"loss": 9.0}, step=2)
    second.log_metrics({"loss": 10.0}, step=3)
    assert _text(second) == "round,loss,acc\n0,0.0,0.5\n1,1.0,0.5\n2,9.0,\n3,10.0,\n"


def test_truncate_forgets_the_rounds_that_will_be_done_again(tmp_path):
    first = RoundCSVLogger(tmp_path)
    for round_ in range(3):
        first.log_metrics({"loss": float(round_)}, step=round_)
    RoundCSVLogger(tmp_path, version=first.version).truncate(1)
    assert _text(first) == "round,loss\n0,0.0\n"


def test_hyperparameters_are_written_as_lightnings_own_logger_writes_them(tmp_path):
    ours, theirs = RoundCSVLogger(tmp_path, name="ours"), CSVLogger(tmp_path, name="theirs")
    for logger in (ours, theirs):
        logger.log_hyperparams({"lr": 0.1, "head": "fc"})
        logger.log_hyperparams(Namespace(width=64))
        logger.save()
    written = Path(ours.log_dir, "hparams.yaml").read_text()
    assert written == Path(theirs.log_dir, "hparams.yaml").read_text()
    assert yaml.safe_load(written) == {"lr": 0.1, "head": "fc", "width": 64}


def test_other_ranks_write_nothing_and_claim_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    logger = RoundCSVLogger(tmp_path)
    logger.log_hyperparams({"lr": 0.1})
    logger.log_metrics({"loss": 2.0}, step=0)
    logger.save()
    logger.truncate(0)
    logger.finalize("success")
    assert logger.version == 0
    assert list(tmp_path.iterdir()) == []


def test_a_pickled_logger_goes_on_in_the_same_folder(tmp_path):
    logger = RoundCSVLogger(tmp_path)
    logger.log_metrics({"loss": 2.0}, step=0)
    copy = pickle.loads(pickle.dumps(logger))
    copy.log_metrics({"loss": 1.0}, step=1)
    assert _text(logger) == "round,loss\n0,2.0\n1,1.0\n"


def test_a_url_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="save_dir='s3://bucket/logs' is a URL"):
        RoundCSVLogger("s3://bucket/logs")


class _Logging(BoringModel):
    def on_train_epoch_end(self):
        self.log("train/loss", 1.0 + self.current_epoch)
        self.log("step", float(self.current_epoch))


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # Lightning on a recent torch
@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_a_fit_leaves_one_row_an_epoch_when_step_is_the_epoch(tmp_path):
    logger = RoundCSVLogger(tmp_path)
    trainer = Trainer(
        logger=logger,
        max_epochs=3,
        limit_train_batches=1,
        limit_val_batches=0,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
    )
    trainer.fit(_Logging(), torch.utils.data.DataLoader(torch.ones(4, 32)))
    with Path(logger.log_dir, "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["round"], float(row["train/loss"])) for row in rows] == [
        ("0", 1.0),
        ("1", 2.0),
        ("2", 3.0),
    ]


def _text(logger):
    return Path(logger.log_dir, "metrics.csv").read_text()
