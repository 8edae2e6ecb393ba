"""A resumed run is the uninterrupted one, bit for bit."""

from __future__ import annotations

import csv
from functools import cache
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping

from fedlightning import Algorithm, FedAvg, FedBABU, PersonalizationCallback
from fedlightning.errors import CheckpointError
from tests.toys import Net, data, fit, loop_of, net, same, state, trainer

FEDPER_LIKE = Algorithm(train="full", share="body")


class Stop(RuntimeError):
    pass


class StopAt(pl.Callback):
    """Raises at one event of one round."""

    def __init__(self, hook: str, round_: int, client: int = 0) -> None:
        self.round, self.client, self.seen = round_, client, 0
        setattr(self, hook, self.strike)

    def strike(self, trainer, *_):
        if trainer.current_epoch == self.round:
            self.seen += 1
            if self.seen == self.client + 1:
                raise Stop


def uninterrupted(algorithm, folder, **kwargs):
    module = net(dropout=0.3)
    built = fit(module, algorithm, rounds=4, cohort=3, folder=folder, **kwargs)
    return module, built


@cache
def uninterrupted_once(algorithm):
    """Return the same, of a run without files that is made once for all tests."""
    return uninterrupted(algorithm, None)


class SaveOnException(pl.Callback):
    """Saves ``stopped.ckpt`` when the run breaks, as a preempted job would."""

    def on_exception(self, trainer, pl_module, exception):
        trainer.save_checkpoint(Path(trainer.log_dir) / "stopped.ckpt")


def checkpoint(folder: Path, name: str) -> Path:
    return next(folder.rglob(name))


@pytest.mark.parametrize(
    "algorithm", [FedAvg(), FedBABU(), FEDPER_LIKE], ids=lambda a: a.train + a.share
)
def test_resume_after_a_round_equals_the_uninterrupted_run(algorithm, tmp_path):
    whole, built = uninterrupted(algorithm, tmp_path / "whole")
    resumed, half = net(seed=9, dropout=0.3), tmp_path / "half"
    with pytest.raises(Stop):
        fit(
            net(dropout=0.3), algorithm, rounds=4, cohort=3, folder=half,
            callbacks=[StopAt("on_train_epoch_start", 2)],
        )  # fmt: skip
    other = fit(
        resumed, algorithm, rounds=4, cohort=3, folder=half, ckpt=checkpoint(half, "last.ckpt")
    )
    assert same(state(whole), state(resumed))
    assert other.current_epoch == built.current_epoch == 4
    assert other.global_step == built.global_step == 12
    for client in loop_of(built).personal:
        assert same(loop_of(built).personal.get(client), loop_of(other).personal.get(client))


@pytest.mark.parametrize(
    ("hook", "client"),
    [
        ("on_train_epoch_start", 0),
        ("on_train_batch_start", 0),
        ("on_train_batch_start", 2),
        ("on_client_end", 1),
        ("on_train_batch_end", 2),
        ("on_aggregate_end", 0),
        ("on_validation_start", 0),
        ("on_validation_batch_start", 1),
        ("on_validation_end", 0),
        ("on_train_epoch_end", 0),
    ],
)
@pytest.mark.parametrize("algorithm", [FedBABU(), FEDPER_LIKE], ids=["FedBABU", "kept"])
def test_a_run_stopped_anywhere_in_a_round_goes_on_as_if_nothing_had_been(
    hook, client, algorithm, tmp_path
):
    whole, built = uninterrupted_once(algorithm)
    with pytest.raises(Stop):
        fit(
            net(dropout=0.3), algorithm, rounds=4, cohort=3, folder=tmp_path / "stopped",
            callbacks=[StopAt(hook, 1, client), SaveOnException()],
        )  # fmt: skip
    saved = checkpoint(tmp_path, "stopped.ckpt")
    resumed = net(seed=9, dropout=0.3)
    other = fit(
        resumed, algorithm, rounds=4, cohort=3, folder=tmp_path / "resumed", ckpt=saved,
    )  # fmt: skip
    assert same(state(whole), state(resumed))
    assert other.global_step == built.global_step
    for client_id in loop_of(built).personal:
        assert same(loop_of(built).personal.get(client_id), loop_of(other).personal.get(client_id))


def test_a_checkpoint_saved_in_the_middle_of_a_client_holds_the_rounds_start(tmp_path):
    path = tmp_path / "middle.ckpt"

    class Saving(Net):
        def on_train_batch_end(self, outputs, batch, batch_idx):
            if self.trainer.current_epoch == 1 and not path.exists():
                self.trainer.save_checkpoint(path)

    module = net(module=Saving, dropout=0.3)
    whole, _ = uninterrupted(FedAvg(), tmp_path / "whole")
    fit(module, FedAvg(), rounds=4, cohort=3)
    assert same(state(module), state(whole)), "saving changed the run"
    saved = torch.load(path, weights_only=True)
    assert saved["optimizer_states"][0]["state"] == {}

    resumed = net(seed=9, dropout=0.3)
    fit(resumed, FedAvg(), rounds=4, cohort=3, ckpt=path)
    assert same(state(resumed), state(whole))


def test_a_checkpoint_saved_by_hand_after_a_fit_goes_on_with_the_next_round(tmp_path):
    first = net(lr_milestones=())
    fit(first, FedAvg(), rounds=2, cohort=3).save_checkpoint(tmp_path / "hand.ckpt")
    resumed, whole = net(seed=9, lr_milestones=()), net(lr_milestones=())
    fit(resumed, FedAvg(), rounds=4, cohort=3, ckpt=tmp_path / "hand.ckpt")
    fit(whole, FedAvg(), rounds=4, cohort=3)
    assert same(state(resumed), state(whole))


def test_a_checkpoint_saved_before_the_first_round_starts_with_it(tmp_path):
    class Early(pl.Callback):
        def on_train_start(self, trainer, pl_module):
            trainer.save_checkpoint(tmp_path / "early.ckpt")

    whole, resumed = net(), net(seed=9)
    fit(whole, FedAvg(), rounds=2, callbacks=[Early()])
    assert fit(resumed, FedAvg(), rounds=2, ckpt=tmp_path / "early.ckpt").global_step == 8
    assert same(state(resumed), state(whole))


@pytest.mark.parametrize("hook", ["on_validation_start", "on_train_epoch_end"])
def test_a_run_stopped_in_its_last_round_is_finished_when_it_is_resumed(hook, tmp_path):
    with pytest.raises(Stop):
        fit(
            net(), FedAvg(), rounds=2, folder=tmp_path / "stopped",
            callbacks=[StopAt(hook, 1), SaveOnException(), PersonalizationCallback()],
        )  # fmt: skip
    saved = checkpoint(tmp_path, "stopped.ckpt")
    again = [PersonalizationCallback()]
    built = fit(net(), FedAvg(), rounds=2, folder=tmp_path / "b", ckpt=saved, callbacks=again)
    assert built.current_epoch == 2
    assert len(again[0].records) == 4
    assert checkpoint(tmp_path / "b", "last.ckpt").exists()


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"federation": {"seed": 5}}, "seed: 0 -> 5"),
        ({"algorithm": FedBABU()}, r"federation\.algorithm: FedAvg.* -> FedBABU"),
        ({"datamodule": data((8, 6, 7, 6))}, "partition: "),
    ],
)
def test_a_run_does_not_go_on_with_other_settings_that_matter(changed, name, tmp_path):
    fit(net(), FedAvg(), folder=tmp_path)
    saved = checkpoint(tmp_path, "last.ckpt")
    with pytest.raises(CheckpointError, match=name):
        fit(net(), rounds=3, ckpt=saved, **{"algorithm": FedAvg(), **changed})


def test_a_checkpoint_saved_amid_personalization_holds_the_global_model(tmp_path):
    path = tmp_path / "amid.ckpt"

    class Saving(pl.Callback):
        def on_client_personalized(self, trainer, module, done, clients):
            trainer.save_checkpoint(path)

    module = net()
    callbacks = [PersonalizationCallback(part="full", lr=0.5), Saving()]
    built = fit(module, FedBABU(), callbacks=callbacks)
    saved = torch.load(path, weights_only=True)
    assert same(saved["state_dict"], state(module))
    groups = saved["optimizer_states"][0]["param_groups"]
    assert len(groups[0]["params"]) == len(built.optimizers[0].param_groups[0]["params"])


def test_what_clients_kept_is_there_in_test_too(tmp_path):
    personal = PersonalizationCallback()
    fit(net(), FEDPER_LIKE, folder=tmp_path, callbacks=[personal])
    before = [record.acc_before for record in personal.records]
    fresh = PersonalizationCallback()
    trainer(FEDPER_LIKE, callbacks=[fresh]).test(
        net(seed=9), datamodule=data(), ckpt_path=checkpoint(tmp_path, "last.ckpt"), verbose=False
    )
    assert [record.acc_before for record in fresh.records] == before


def test_extending_a_finished_run_works(tmp_path):
    kwargs = {"cohort": 3, "folder": tmp_path}
    short = net(lr_milestones=())
    fit(short, FedAvg(), rounds=2, **kwargs)
    fit(short, FedAvg(), rounds=4, ckpt=checkpoint(tmp_path, "last.ckpt"), **kwargs)
    whole = net(lr_milestones=())
    fit(whole, FedAvg(), rounds=4, cohort=3)
    assert same(state(short), state(whole))


def test_last_means_the_newest_run(tmp_path):
    fit(net(), FedAvg(), rounds=2, folder=tmp_path)
    built = trainer(FedAvg(), rounds=3, folder=tmp_path)
    built.fit(net(), datamodule=data(), ckpt_path="last")
    assert built.current_epoch == 3
    assert built.global_step == 12


@pytest.mark.filterwarnings("ignore:.* selects by test data")  # which is not the point here
def test_a_callbacks_memory_is_resumed(tmp_path):
    def callbacks():
        return [
            EarlyStopping("global/loss", patience=50),
            PersonalizationCallback(every_n_rounds=2),
        ]

    fit(net(lr_milestones=()), FedAvg(), rounds=2, folder=tmp_path, callbacks=callbacks())
    again = trainer(FedAvg(), rounds=3, folder=tmp_path / "b", callbacks=callbacks())
    path = checkpoint(tmp_path, "last.ckpt")
    again.fit(net(lr_milestones=()), datamodule=data(), ckpt_path=path)
    whole = fit(net(lr_milestones=()), FedAvg(), rounds=3, callbacks=callbacks())
    assert float(again.callbacks[0].best_score) == float(whole.callbacks[0].best_score)


def test_the_checkpoint_is_a_plain_one_of_the_users_class(tmp_path):
    module = net(dropout=0.25)
    fit(module, FedBABU(), folder=tmp_path)
    path = checkpoint(tmp_path, "last.ckpt")
    loaded = torch.load(path, weights_only=True)
    assert same(loaded["state_dict"], state(module))
    again = Net.load_from_checkpoint(path)
    assert same(state(again), state(module))
    assert again.hparams["dropout"] == 0.25


def test_metrics_of_a_resumed_run_are_those_of_the_whole_run(tmp_path):
    def rows(folder):
        with checkpoint(folder, "metrics.csv").open() as file:
            return {row["round"]: row for row in csv.DictReader(file)}

    uninterrupted(FedAvg(), tmp_path / "whole")
    with pytest.raises(Stop):
        fit(
            net(dropout=0.3), FedAvg(), rounds=4, cohort=3, folder=tmp_path / "stopped",
            callbacks=[StopAt("on_validation_start", 2), SaveOnException()],
        )  # fmt: skip
    saved = checkpoint(tmp_path, "stopped.ckpt")
    fit(
        net(dropout=0.3), FedAvg(), rounds=4, cohort=3, folder=tmp_path / "resumed", ckpt=saved,
    )  # fmt: skip
    whole, resumed = rows(tmp_path / "whole"), rows(tmp_path / "resumed")
    assert resumed.keys() == {"2", "3"}
    for round_ in resumed:
        assert resumed[round_] == whole[round_]
