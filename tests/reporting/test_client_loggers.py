import json
import math

import pytest
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from pytorch_lightning.utilities import rank_zero_only

from fedlightning.reporting.client_logging import log_clients
from fedlightning.reporting.client_records import ClientRecord

RECORDS = [
    ClientRecord(0, 80, 20, 0.25, 0.5, 1.5, 1.0),
    ClientRecord(1, 60, 20, 0.5, 1.0, 1.0, 0.25),
    ClientRecord(2, 40, 0, math.nan, math.nan, math.nan, math.nan),
]


class TensorBoardBesideOthers(TensorBoardLogger):
    """A subclass, as users write them."""


@pytest.fixture
def no_wandb_settings(monkeypatch, tmp_path):
    for name in ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")


@pytest.mark.parametrize("kind", [TensorBoardLogger, TensorBoardBesideOthers])
def test_tensorboard_gets_two_histograms_and_the_figure(tmp_path, kind):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    logger = kind(tmp_path)
    log_clients([logger], RECORDS, step=4)
    logger.finalize("success")
    events = accumulator.EventAccumulator(logger.log_dir).Reload()
    assert events.Tags()["histograms"] == ["initial/acc_per_client", "personalized/acc_per_client"]
    assert events.Tags()["images"] == ["personalized/clients"]
    [event] = events.Histograms("personalized/acc_per_client")
    value = event.histogram_value
    assert (event.step, value.num, value.min, value.max, value.sum) == (4, 2, 0.5, 1.0, 1.5)
    [image] = events.Images("personalized/clients")
    assert image.width > image.height > 0


def test_without_any_test_data_tensorboard_gets_nothing(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    log_clients([logger], RECORDS[2:], step=0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("no_wandb_settings")
def test_wandb_gets_the_table_of_clients(tmp_path):
    wandb = pytest.importorskip("wandb")
    logger = WandbLogger(save_dir=tmp_path, offline=True)
    try:
        log_clients([logger], RECORDS, step=4)
    finally:
        wandb.finish()
    [path] = tmp_path.glob("wandb/offline-run-*/files/media/table/clients*.table.json")
    table = json.loads(path.read_text())
    assert table["columns"] == [
        "client_id",
        "num_train",
        "num_test",
        "acc_before",
        "acc_after",
        "loss_before",
        "loss_after",
    ]
    assert table["data"][1] == [1, 60, 20, 0.5, 1.0, 1.0, 0.25]
    assert [row[0] for row in table["data"]] == [0, 1, 2]


def test_other_loggers_are_left_alone(tmp_path):
    log_clients([CSVLogger(tmp_path)], RECORDS, step=0)
    assert list(tmp_path.iterdir()) == []


def test_other_ranks_log_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    log_clients([TensorBoardLogger(tmp_path)], RECORDS, step=0)
    assert list(tmp_path.iterdir()) == []


def test_a_logger_is_known_by_the_name_of_its_class():
    class WandbLogger:
        def log_table(self, **arguments):
            self.arguments = arguments

    logger = WandbLogger()
    log_clients([logger], RECORDS[:1], step=7)
    assert logger.arguments["key"] == "clients"
    assert logger.arguments["step"] == 7
    assert logger.arguments["data"] == [[0, 80, 20, 0.25, 0.5, 1.5, 1.0]]
