"""``rounds.csv``: what a run writes about time and cohorts."""

import csv
import zlib

import pytorch_lightning as pl

from fedlightning import FedBABU, FederatedTrainer, Federation
from fedlightning.core.seeding import Key
from fedlightning.datamodules import Digits, Shards
from fedlightning.federation.sampling import UniformSampler
from fedlightning.models import MLP


def rows(folder):
    with (folder / "lightning_logs" / "version_0" / "rounds.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def fit(folder, rounds, ckpt_path=None, callbacks=()):
    trainer = FederatedTrainer(
        federation=Federation(algorithm=FedBABU(), cohort_size=3, seed=5),
        max_epochs=rounds,
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
    )
    data = Digits(num_clients=10, batch_size=100, partition=Shards(2))
    trainer.fit(MLP(hidden=[4]), datamodule=data, ckpt_path=ckpt_path)


class Saves(pl.Callback):
    """Saves a checkpoint where a round is merged, but its evaluation is still to come."""

    def __init__(self, path):
        self.path = path

    def on_validation_start(self, trainer, module):
        if trainer.current_epoch == 1 and not trainer.sanity_checking:
            trainer.save_checkpoint(self.path)


def test_each_round_has_its_seconds_and_a_sum_of_its_cohort(tmp_path):
    fit(tmp_path, rounds=2)
    found = rows(tmp_path)
    assert [row["round"] for row in found] == ["0", "1"]
    assert all(0 < float(row["seconds"]) < 60 for row in found)
    assert [row["clients"] for row in found] == ["3", "3"]
    for number, row in enumerate(found):
        cohort = UniformSampler().cohort(Key(5, "cohort", round=number), 10, 3)
        assert int(row["cohort_crc32"]) == zlib.crc32(",".join(map(str, cohort)).encode())


def test_a_resumed_run_goes_on_in_the_table(tmp_path):
    fit(tmp_path, rounds=2)
    before = rows(tmp_path)
    fit(tmp_path, rounds=3, ckpt_path="last")
    after = rows(tmp_path)
    assert after[:2] == before
    assert [row["round"] for row in after] == ["0", "1", "2"]


def test_a_round_that_was_merged_before_the_checkpoint_keeps_its_row(tmp_path):
    run = tmp_path / "lightning_logs" / "version_0"
    fit(tmp_path, rounds=3, callbacks=[Saves(run / "checkpoints" / "last.ckpt.kept")])
    whole = rows(tmp_path)
    (run / "checkpoints" / "last.ckpt.kept").replace(run / "checkpoints" / "last.ckpt")
    fit(tmp_path, rounds=3, ckpt_path="last")
    resumed = rows(tmp_path)
    assert resumed[:2] == whole[:2]
    assert [row["cohort_crc32"] for row in resumed] == [row["cohort_crc32"] for row in whole]
