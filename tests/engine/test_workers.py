"""Any number of workers gives the same bits, and none waits for another in vain."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.classification import MulticlassAccuracy

from fedlightning import Algorithm, FedBABU, PersonalizationCallback
from fedlightning.engine.workers.collectives import Workers, longest_first
from fedlightning.engine.workers.launch import devices_of, strategy_of
from fedlightning.engine.workers.strategy import FederatedDDPStrategy
from fedlightning.errors import ConfigError, FederationError
from tests.toys import Net, client_states, fit, net, same, trainer

KEPT = Algorithm(train="full", share="body")


@given(st.lists(st.integers(0, 50), max_size=30), st.integers(1, 6))
def test_every_task_is_dealt_once_and_no_worker_has_more_than_a_task_too_many(sizes, workers):
    shares = longest_first(sizes, workers)
    assert sorted(task for share in shares for task in share) == list(range(len(sizes)))
    loads = [sum(sizes[task] for task in share) for share in shares]
    assert max(loads) - min(loads) <= max(sizes, default=0)


def test_one_process_sends_nothing():
    alone = Workers()
    assert alone.gather({"a": 1}) == [{"a": 1}]
    assert all(alone.owns(index) for index in range(5))


def run(folder: Path, devices: int, algorithm=None, module=Net, **kwargs):
    """Fit in forked workers; what they did is read from the run's folder."""
    settings = {"callbacks": [PersonalizationCallback(part="full", every_n_rounds=2)], **kwargs}
    if devices > 1:
        settings |= {"accelerator": "cpu", "devices": devices, "strategy": "ddp_fork"}
    fit(
        net(module=module, dropout=0.3), algorithm or FedBABU(), rounds=3, cohort=3, folder=folder,
        **settings,
    )  # fmt: skip
    return folder / "lightning_logs" / "version_0"


def saved(run_folder: Path):
    return torch.load(run_folder / "checkpoints" / "last.ckpt", weights_only=True)


def assert_same_run(one: Path, other: Path) -> None:
    first, second = saved(one), saved(other)
    assert same(first["state_dict"], second["state_dict"])
    assert first["global_step"] == second["global_step"]
    assert same(client_states(first), client_states(second))
    for name in ("metrics.csv", "clients.csv", "partition.csv"):
        assert (one / name).read_text() == (other / name).read_text(), name


@pytest.mark.parametrize("algorithm", [FedBABU(), KEPT], ids=["FedBABU", "kept"])
@pytest.mark.parametrize("devices", [2, 3, 4])
def test_workers_give_the_bits_of_one_process(devices, algorithm, tmp_path):
    assert_same_run(
        run(tmp_path / "one", 1, algorithm), run(tmp_path / "several", devices, algorithm)
    )


def test_the_number_of_workers_may_change_at_resume(tmp_path):
    whole = run(tmp_path / "whole", 1, KEPT)
    first = tmp_path / "first"
    fit(
        net(dropout=0.3), KEPT, rounds=3, cohort=3, folder=first,
        callbacks=[PersonalizationCallback(part="full", every_n_rounds=2), _StopAfter(1)],
    )  # fmt: skip
    checkpoint = next(first.rglob("last.ckpt"))
    assert torch.load(checkpoint, weights_only=True)["epoch"] == 0
    resumed = run(tmp_path / "resumed", 2, KEPT, ckpt=checkpoint)
    assert same(saved(whole)["state_dict"], saved(resumed)["state_dict"])
    with (whole / "metrics.csv").open() as a, (resumed / "metrics.csv").open() as b:
        assert list(csv.DictReader(a))[1:] == list(csv.DictReader(b))


class _StopAfter(pl.Callback):
    """Stops a run after so many rounds, without finishing it."""

    def __init__(self, rounds: int) -> None:
        self.rounds = rounds

    def on_train_epoch_end(self, trainer, pl_module):
        trainer.should_stop = trainer.current_epoch + 1 >= self.rounds


class WithMetric(Net):
    """Logs a torchmetrics object, which would ask all processes if it were let."""

    def __init__(self, **kwargs) -> None:
        super().__init__(**kwargs)
        self.accuracy = MulticlassAccuracy(3, average="micro")

    def training_step(self, batch, batch_idx):
        self.accuracy(self(batch[0]), batch[1])
        self.log("acc", self.accuracy)
        return super().training_step(batch, batch_idx)


def test_metric_objects_are_each_workers_own(tmp_path):
    assert_same_run(
        run(tmp_path / "one", 1, module=WithMetric), run(tmp_path / "two", 2, module=WithMetric)
    )


class FailsInTest(Net):
    """Fails in the evaluation of one client."""

    def test_step(self, batch, batch_idx):
        if self.trainer.global_rank == 1:
            raise ValueError("bad test")


def test_a_failing_evaluation_ends_the_run_on_every_worker(tmp_path):
    with pytest.raises(Exception, match="bad test"):
        run(tmp_path, 2, module=FailsInTest, callbacks=[])


class FailsOnClientTwo(Net):
    """Fails in one client's training, wherever that runs."""

    def on_train_batch_start(self, batch, batch_idx):
        if len(batch[1]) == 3:  # only client 2 has seven examples: batches of 4 and 3
            raise ValueError("bad luck")


def test_a_failing_client_ends_the_run_on_every_worker(tmp_path):
    with pytest.raises(Exception, match="bad luck") as failure:
        run(tmp_path, 2, module=FailsOnClientTwo, callbacks=[])
    assert failure.type in (FederationError, ValueError) or "ProcessRaised" in failure.typename


@pytest.mark.parametrize("devices", [2, 3])
def test_heads_tuned_alone_are_the_same_whoever_tunes_them(devices, tmp_path):
    def tuned(name: str, devices: int) -> Path:
        return run(
            tmp_path / name,
            devices,
            callbacks=[PersonalizationCallback(lr=0.5, features_once=True)],
        )

    assert_same_run(tuned("one", 1), tuned("several", devices))


@pytest.mark.parametrize(
    ("strategy", "start"), [("auto", "popen"), ("ddp_spawn", "spawn"), ("ddp_notebook", "fork")]
)
def test_lightnings_names_for_starting_workers_are_understood(strategy, start):
    built = strategy_of({"devices": 2, "strategy": strategy})
    assert isinstance(built, FederatedDDPStrategy)
    assert built._start_method == start


def test_one_device_needs_no_workers():
    assert strategy_of({"devices": 1, "strategy": None}) == "auto"


@pytest.mark.parametrize(
    ("given", "cohort_size", "workers"),
    [(None, 10, 1), (3, 10, 3), ("auto", 10, 4), ("auto", 2, 2), ("auto", 0.1, 4)],
)
def test_auto_takes_a_worker_for_each_core_that_a_cohort_can_use(
    given, cohort_size, workers, monkeypatch
):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    assert devices_of({"devices": given, "accelerator": "cpu"}, cohort_size) == workers


def test_strategies_that_split_a_model_are_refused():
    with pytest.raises(ConfigError, match="has no federated meaning"):
        trainer(strategy="ddp_find_unused_parameters_true", devices=2, accelerator="cpu")
