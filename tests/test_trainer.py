"""Stock callbacks, loggers and flags work; what has no meaning is refused with its reason."""

from __future__ import annotations

import csv
import re

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import (
    DeviceStatsMonitor,
    EarlyStopping,
    GradientAccumulationScheduler,
    LambdaCallback,
    LearningRateFinder,
    LearningRateMonitor,
    ModelCheckpoint,
    ModelSummary,
    RichProgressBar,
    Timer,
    TQDMProgressBar,
)
from pytorch_lightning.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fedlightning import FedAvg, FedBABU, FederatedTrainer, PersonalizationCallback
from fedlightning.errors import CheckpointError, ConfigError
from tests.toys import Net, data, fit, net, same, state, trainer


def metrics(folder):
    with next(folder.rglob("metrics.csv")).open() as file:
        return list(csv.DictReader(file))


@pytest.mark.filterwarnings("ignore:.* selects by test data")  # which is not the point here
def test_model_checkpoint_keeps_the_best_round_by_a_federated_metric(tmp_path):
    best = ModelCheckpoint(monitor="global/loss", filename="best-{epoch}", save_top_k=1)
    fit(net(), FedAvg(), rounds=4, folder=tmp_path, callbacks=[best])
    losses = [float(row["global/loss"]) for row in metrics(tmp_path)]
    assert float(best.best_model_score) == pytest.approx(min(losses), rel=1e-6)
    assert f"epoch={losses.index(min(losses))}" in best.best_model_path


@pytest.mark.filterwarnings("ignore:.* selects by test data")  # which is not the point here
def test_model_checkpoint_can_monitor_the_personalized_accuracy(tmp_path):
    best = ModelCheckpoint(monitor="personalized/acc", mode="max")
    personal = PersonalizationCallback(every_n_rounds=1)
    fit(net(), FedBABU(), rounds=2, folder=tmp_path, callbacks=[best, personal])
    assert best.best_model_score is not None


def test_model_checkpoint_every_n_train_steps_means_every_n_clients(tmp_path):
    every = ModelCheckpoint(every_n_train_steps=3, save_top_k=-1, filename="{step}")
    fit(net(), FedAvg(), rounds=2, folder=tmp_path, callbacks=[every])
    names = {path.name for path in tmp_path.rglob("step=*.ckpt")}
    assert names == {"step=3.ckpt", "step=6.ckpt"}


def test_early_stopping_ends_a_run_that_does_not_get_better(tmp_path):
    stopping = EarlyStopping("train/loss", patience=1, min_delta=100.0)
    built = fit(net(), FedAvg(), rounds=10, folder=tmp_path, callbacks=[stopping])
    assert built.current_epoch == 2


def test_personalization_runs_for_the_final_model_even_if_training_stops_early(tmp_path):
    personal = PersonalizationCallback(part="full")
    stopping = EarlyStopping("train/loss", patience=1, min_delta=100.0)
    fit(net(), FedAvg(), rounds=10, folder=tmp_path, callbacks=[personal, stopping])
    assert len(personal.records) == 4
    rows = metrics(tmp_path)
    assert [row["personalized/acc"] != "" for row in rows] == [False, True]


def test_learning_rate_monitor_logs_the_rounds_rate_at_the_round(tmp_path):
    fit(net(), FedAvg(), rounds=4, folder=tmp_path, callbacks=[LearningRateMonitor()])
    rates = [float(row["lr-SGD"]) for row in metrics(tmp_path)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.001])


def test_metrics_have_one_row_a_round_and_a_column_round(tmp_path):
    fit(net(), FedAvg(), rounds=3, folder=tmp_path)
    rows = metrics(tmp_path)
    assert [row["round"] for row in rows] == ["0", "1", "2"]
    assert {"train/loss", "global/loss", "global/acc"} <= rows[0].keys()


def test_tensorboard_has_rounds_on_its_axis(tmp_path):
    personal = PersonalizationCallback(part="full")
    fit(net(), FedAvg(), rounds=3, folder=tmp_path, callbacks=[personal])
    events = EventAccumulator(str(next(tmp_path.rglob("version_0"))))
    events.Reload()
    assert [event.step for event in events.Scalars("global/acc")] == [0, 1, 2]
    assert [event.step for event in events.Scalars("personalized/acc")] == [2]
    assert "personalized/acc_per_client" in events.Tags()["histograms"]
    assert "personalized/clients" in events.Tags()["images"]


def test_last_checkpoint_exists_after_every_round(tmp_path):
    seen = []

    def look(trainer, *_):
        seen.append(sorted(path.name for path in tmp_path.rglob("*.ckpt")))

    fit(
        net(),
        FedAvg(),
        rounds=2,
        folder=tmp_path,
        callbacks=[LambdaCallback(on_train_epoch_start=look)],
    )
    assert seen == [[], ["last.ckpt"]]
    assert torch.load(next(tmp_path.rglob("last.ckpt")), weights_only=True)["epoch"] == 1


def test_timer_stops_at_a_client(tmp_path):
    built = fit(net(), FedAvg(), rounds=10_000, callbacks=[Timer("00:00:00:00")])
    assert built.current_epoch <= 1


def test_max_time_is_honoured():
    assert fit(net(), FedAvg(), rounds=-1, max_time={"seconds": 0.3}).current_epoch >= 1


def test_max_steps_counts_client_updates():
    assert fit(net(), FedAvg(), rounds=10, max_steps=8).current_epoch == 2


def test_gradient_accumulation_can_change_by_the_round():
    changing, constant = net(), net()
    fit(changing, FedAvg(), rounds=2, callbacks=[GradientAccumulationScheduler({0: 2, 1: 2})])
    fit(constant, FedAvg(), rounds=2, accumulate_grad_batches=2)
    assert same(state(changing), state(constant))


def test_other_stock_callbacks_run(tmp_path):
    stock = [DeviceStatsMonitor(cpu_stats=False), ModelSummary(max_depth=2)]
    fit(net(), FedAvg(), folder=tmp_path, callbacks=stock, enable_model_summary=True)


@pytest.mark.parametrize("bar", [TQDMProgressBar, RichProgressBar])
def test_stock_progress_bars_show_clients_rounds_and_metrics(bar, capsys):
    fit(net(), FedAvg(), rounds=2, callbacks=[bar()], enable_progress_bar=True)
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", "".join(capsys.readouterr()))
    assert "Epoch 1" in text
    assert "4/4" in text
    assert "train/loss" in text


def test_the_default_bar_shows_rounds_clients_time_left_and_metrics(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    fit(net(), FedAvg(), rounds=2, enable_progress_bar=True)
    text = "".join(capsys.readouterr())
    assert "Round 2/2, client 4/4" in text
    assert "global/acc=" in text


def test_without_a_terminal_the_default_bar_prints_lines_by_time(capsys):
    fit(net(), FedAvg(), rounds=40, enable_progress_bar=True)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Round")]
    assert len(lines) <= 4  # one each half minute
    assert lines[-1].startswith("Round 40/40")
    assert "global/acc=" in lines[-1]


def test_validate_and_test_evaluate_the_global_model_and_personalise(tmp_path):
    module = net()
    built = fit(module, FedBABU(), rounds=2, folder=tmp_path, callbacks=[PersonalizationCallback()])
    during = {name: float(value) for name, value in built.callback_metrics.items()}
    before = state(module)
    for evaluate in (built.validate, built.test):
        (result,) = evaluate(module, datamodule=data(), verbose=False)
        for name in ("global/acc", "global/loss", "personalized/acc", "personalized/loss"):
            assert result[name] == pytest.approx(during[name])
    assert same(state(module), before)


def test_a_checkpoint_can_be_tested_by_another_trainer(tmp_path):
    built = fit(net(), FedAvg(), folder=tmp_path)
    (result,) = trainer(FedAvg()).test(
        net(seed=5), datamodule=data(), ckpt_path=next(tmp_path.rglob("last.ckpt")), verbose=False
    )
    assert result["global/acc"] == pytest.approx(float(built.callback_metrics["global/acc"]))


def test_predict_gives_probabilities_for_every_test_example():
    built = fit(net(), FedAvg())
    batches = built.predict(built.lightning_module, datamodule=data())
    assert torch.cat(batches).shape == (16, 3)
    torch.testing.assert_close(torch.cat(batches).sum(dim=1), torch.ones(16))


def test_fast_dev_run_trains_n_clients_for_one_round():
    built = fit(net(), FedAvg(), rounds=5, fast_dev_run=2)
    assert built.current_epoch == 1
    assert built.global_step == 2


def test_the_trainer_gives_the_number_of_threads_back():
    torch.set_num_threads(2)
    fit(net(), FedAvg())
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("overfit_batches", 1),
        ("val_check_interval", 0.5),
        ("reload_dataloaders_every_n_epochs", 1),
        ("sync_batchnorm", True),
        ("barebones", True),
    ],
)
def test_a_flag_without_a_federated_meaning_is_refused_with_its_reason(flag, value):
    with pytest.raises(
        ConfigError, match=rf"trainer\.{flag}={value} has no federated meaning: \w+"
    ):
        trainer(**{flag: value})


def test_callbacks_that_train_outside_of_rounds_are_refused():
    with pytest.raises(ConfigError, match="LearningRateFinder has no federated meaning"):
        trainer(callbacks=[LearningRateFinder()], enable_checkpointing=True)


@pytest.mark.parametrize("rounds", [0, -2, 2.5, True])
def test_rounds_that_cannot_be_counted_are_refused(rounds):
    with pytest.raises(ConfigError, match=r"trainer\.max_epochs counts rounds"):
        trainer(rounds=rounds)


def test_last_without_a_run_is_an_error(tmp_path):
    with pytest.raises(
        CheckpointError, match=r"no lightning_logs/version_\*/checkpoints/last\.ckpt"
    ):
        fit(net(), folder=tmp_path, ckpt="last")


def test_building_a_trainer_creates_no_folder(tmp_path):
    FederatedTrainer(default_root_dir=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_run_without_loggers_writes_nothing(tmp_path):
    fit(net(), FedAvg(), callbacks=[PersonalizationCallback()], default_root_dir=tmp_path)
    assert not list(tmp_path.rglob("*"))


@pytest.mark.pictures
def test_the_run_folder_has_what_the_contract_says(tmp_path, capsys):
    fit(net(), FedBABU(), folder=tmp_path, callbacks=[PersonalizationCallback()])
    names = {path.name for path in (tmp_path / "lightning_logs" / "version_0").iterdir()}
    assert {
        "metrics.csv", "clients.csv", "clients.png", "partition.csv", "partition.json",
        "partition.png", "curves.png", "checkpoints",
    } <= names  # fmt: skip
    text = capsys.readouterr().out
    assert "FedBABU" in text
    assert "after (head)" in text
    assert "clients.csv" in text


def test_module_subclasses_with_their_own_logging_work(tmp_path):
    class Own(Net):
        def validation_step(self, batch, batch_idx):
            self.log("val_size", float(len(batch[1])), on_step=False, on_epoch=True)

    fit(net(module=Own), FedAvg(), folder=tmp_path, datamodule=data(val_fraction=0.5))
    assert "val_size" in metrics(tmp_path)[0]


def test_the_modules_logger_is_the_users_not_the_csv_file(tmp_path):
    class Own(Net):
        def on_train_end(self):
            self.logger.experiment.add_scalar("by_hand", 1.0, self.current_epoch)

    built = fit(net(module=Own), FedAvg(), folder=tmp_path)
    assert isinstance(built.logger, TensorBoardLogger)
    assert built.log_dir == built.loggers[0].log_dir
    own = TensorBoardLogger(tmp_path / "own")
    assert fit(net(module=Own), FedAvg(), folder=tmp_path, logger=own).logger is own
    assert trainer().logger is None


def test_the_summary_tells_only_what_was_measured_of_the_final_model(tmp_path, capsys):
    fit(
        net(), FedAvg(), rounds=4, folder=tmp_path, check_val_every_n_epoch=3,
        num_sanity_val_steps=2,
    )  # fmt: skip
    assert "global model" not in capsys.readouterr().out
    fit(net(), FedAvg(), rounds=4, folder=tmp_path, ckpt=next(tmp_path.rglob("last.ckpt")))
    assert "nothing to do" in capsys.readouterr().out


def test_last_is_found_by_test_and_predict_too(tmp_path):
    built = fit(net(), FedAvg(), folder=tmp_path)
    (result,) = trainer(FedAvg(), folder=tmp_path).test(
        net(seed=5), datamodule=data(), ckpt_path="last", verbose=False
    )
    assert result["global/acc"] == pytest.approx(float(built.callback_metrics["global/acc"]))
    assert trainer(FedAvg(), folder=tmp_path).predict(net(), datamodule=data(), ckpt_path="last")


def test_callbacks_may_log_in_a_clients_hooks_weighted_by_its_examples():
    class Sizes(pl.Callback):
        def on_train_batch_end(self, trainer, module, outputs, task, batch_idx):
            module.log("size", float(task.num_examples), on_step=False, on_epoch=True)

        def on_validation_batch_end(self, trainer, module, outputs, task, batch_idx):
            module.log("seen", float(task.client))

    built = fit(net(), FedAvg(), rounds=1, datamodule=data((8, 5)), callbacks=[Sizes()])
    assert float(built.callback_metrics["size"]) == pytest.approx((8 * 8 + 5 * 5) / 13)
    assert float(built.callback_metrics["seen"]) == 0.5


def test_limit_val_batches_cuts_clients_not_splits():
    built = fit(net(), FedAvg(), datamodule=data(val_fraction=0.5), limit_val_batches=0.5)
    assert {"val/acc", "global/acc"} <= built.callback_metrics.keys()
    assert len(built.federated_loop.evaluator.accuracies[""]) == 2
