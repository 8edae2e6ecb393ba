"""Which folder a run goes on in, with which loggers, and what it must have in common."""

from __future__ import annotations

import csv
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from pytorch_lightning.loggers import TensorBoardLogger, WandbLogger

from fedlightning import FedAvg, FedBABU, PersonalizationCallback
from fedlightning.datamodules import TensorExamples
from fedlightning.datamodules.description import fingerprint
from fedlightning.errors import CheckpointError, EnvironmentFailure
from fedlightning.reporting.csv_logger import RoundCSVLogger
from fedlightning.storage.locks import RunLock
from tests.engine.test_resume import Stop, StopAt
from tests.toys import data, fit, net, same, state


@pytest.fixture(autouse=True)
def _no_figures(monkeypatch):
    monkeypatch.setattr("fedlightning.callbacks.run_record.save_figure", lambda *_: None)


def lasting(**kwargs):
    """A module whose learning rate does not depend on the number of rounds."""
    return net(lr_milestones=(), **kwargs)


def go_on(folder: Path, rounds: int = 3, **kwargs):
    kwargs.setdefault("logger", RoundCSVLogger(folder))
    return fit(kwargs.pop("module", lasting()), FedAvg(), rounds=rounds, folder=folder, **kwargs)


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def versions(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "lightning_logs").iterdir())


# -- the folder ------------------------------------------------------------------------------


def test_a_run_goes_on_in_its_own_folder_and_leaves_what_an_uninterrupted_one_leaves(tmp_path):
    personal = {"callbacks": [PersonalizationCallback(part="full")]}
    go_on(tmp_path / "whole", rounds=3, **personal)
    half = tmp_path / "half"
    stop = StopAt("on_train_epoch_end", 2)  # the round is logged, its checkpoint is not written
    with pytest.raises(Stop):
        go_on(half, callbacks=[PersonalizationCallback(part="full"), stop])
    run, whole = (path / "lightning_logs" / "version_0" for path in (half, tmp_path / "whole"))
    (run / "checkpoints" / ".last.ckpt.99-1.tmp").touch()  # a killed process's
    go_on(half, ckpt="last", **personal)
    assert versions(half) == ["version_0"]
    for name in ("metrics.csv", "clients.csv", "checkpoints/model.safetensors"):
        assert (run / name).read_bytes() == (whole / name).read_bytes(), name
    assert sorted(os.listdir(run / "checkpoints")) == sorted(os.listdir(whole / "checkpoints"))


@pytest.mark.parametrize("inner", [".", "checkpoints"])
@pytest.mark.parametrize("kind", [str, Path])
def test_a_run_folder_stands_for_its_newest_checkpoint(tmp_path, kind, inner):
    run = tmp_path / "lightning_logs" / "version_0"
    go_on(tmp_path, rounds=1)
    built = go_on(tmp_path, rounds=2, ckpt=kind(run / inner))
    assert versions(tmp_path) == ["version_0"]
    assert [row["round"] for row in rows(run)] == ["0", "1"]
    module = built.lightning_module
    scores = built.test(module, datamodule=data(), verbose=False)
    for method in (built.test, built.personalize):
        method(module, datamodule=data(), ckpt_path=kind(run / inner), verbose=False)
        assert Path(built.ckpt_path) == run / "checkpoints" / "last.ckpt"
    again = go_on(tmp_path / "other", rounds=1).test(
        lasting(), datamodule=data(), ckpt_path=kind(run / inner), verbose=False
    )
    assert again == scores


def test_a_folder_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="is a folder with no checkpoint in it: neither"):
        go_on(tmp_path, ckpt=tmp_path)
    assert not (tmp_path / "lightning_logs").exists()


def test_rows_of_rounds_after_the_checkpoint_are_cut(tmp_path):
    run = tmp_path / "lightning_logs" / "version_0"
    go_on(tmp_path)
    before = rows(run)
    (run / "checkpoints" / "last.ckpt").write_bytes(b"torn")
    with pytest.warns(UserWarning, match=r"last\.ckpt is corrupt: using round 1, from previous"):
        built = go_on(tmp_path, rounds=3, ckpt="last")
    assert built.resumption.round == 2
    assert rows(run) == before
    assert versions(tmp_path) == ["version_0"]


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_from_an_older_checkpoint_or_elsewhere_a_run_branches_off(tmp_path):
    best = ModelCheckpoint(filename="{epoch}", save_top_k=-1)
    go_on(tmp_path, callbacks=[best])
    before = (tmp_path / "lightning_logs" / "version_0" / "metrics.csv").read_bytes()
    first = next(tmp_path.rglob("epoch=0.ckpt"))
    go_on(tmp_path, ckpt=first)
    assert versions(tmp_path) == ["version_0", "version_1"]
    assert (first.parents[1] / "metrics.csv").read_bytes() == before
    assert [row["round"] for row in rows(tmp_path / "lightning_logs" / "version_1")] == ["1", "2"]
    go_on(tmp_path / "other", rounds=4, ckpt=first.with_name("last.ckpt"))
    assert versions(tmp_path / "other") == ["version_0"]
    assert (first.parents[1] / "metrics.csv").read_bytes() == before


def test_fewer_rounds_than_are_done_are_nothing_to_do(tmp_path):
    go_on(tmp_path, rounds=3)
    module = lasting(seed=9)
    built = go_on(tmp_path, rounds=2, ckpt="last", module=module)
    assert (built.current_epoch, built.max_epochs) == (3, 2)
    assert len(rows(tmp_path / "lightning_logs" / "version_0")) == 3


@pytest.mark.filterwarnings("ignore:.* selects by test data")  # which is not the point here
@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_a_run_that_stopped_early_stays_stopped(tmp_path):
    def stopping():
        return EarlyStopping("global/loss", patience=1, min_delta=10.0)

    built = go_on(tmp_path, rounds=9, callbacks=[stopping()])
    done = built.current_epoch
    assert done < 9
    module = lasting(seed=9)
    again = go_on(tmp_path, rounds=9, ckpt="last", callbacks=[stopping()], module=module)
    assert again.current_epoch == done
    assert same(state(module), state(built.lightning_module))
    assert go_on(tmp_path, rounds=done + 1, ckpt="last").current_epoch == done + 1


@pytest.mark.filterwarnings("ignore:.* selects by test data")  # which is not the point here
def test_best_models_are_remembered(tmp_path):
    def best():
        return ModelCheckpoint(monitor="global/loss", save_top_k=2)

    def names(folder: Path) -> list[str]:
        return sorted(path.name for path in folder.rglob("*.ckpt"))

    go_on(tmp_path / "whole", rounds=4, callbacks=[best()])
    go_on(tmp_path / "half", rounds=2, callbacks=[best()])
    go_on(tmp_path / "half", rounds=4, ckpt="last", callbacks=[best()])
    assert names(tmp_path / "half") == names(tmp_path / "whole")


# -- loggers ---------------------------------------------------------------------------------


def scalars(folder: Path, tag: str) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


@pytest.mark.parametrize("own", [False, True], ids=["beside", "own"])
def test_tensorboard_goes_on_in_the_same_folder_and_forgets_what_comes_again(own, tmp_path):
    def logger(folder):
        return {"logger": TensorBoardLogger(folder, name="board") if own else None}

    go_on(tmp_path / "whole", **logger(tmp_path / "whole"))
    half = tmp_path / "half"
    with pytest.raises(Stop):
        go_on(half, callbacks=[StopAt("on_train_epoch_end", 2)], **logger(half))
    go_on(half, ckpt="last", **logger(half))
    place = "board/version_0" if own else "lightning_logs/version_0"
    expected = scalars(tmp_path / "whole" / place, "train/loss")
    assert len(expected) == 3
    assert scalars(half / place, "train/loss") == expected
    assert not (half / "board" / "version_1").exists()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # wandb 0.31 on Python 3.11
def test_wandb_goes_on_with_the_same_run(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    ids = []
    for rounds, ckpt in ((1, None), (2, "last")):
        wandb = WandbLogger(project="p", save_dir=tmp_path)
        go_on(tmp_path, rounds=rounds, ckpt=ckpt, logger=wandb)
        ids.append(wandb.experiment.id)
        wandb.experiment.finish()
    assert ids[0] == ids[1]
    assert versions(tmp_path) == ["version_0"]


def test_what_is_logged_for_a_settled_round_joins_its_row(tmp_path):
    RoundCSVLogger(tmp_path, version=0).log_metrics({"a": 1.0}, step=0)
    again = RoundCSVLogger(tmp_path, version=0)
    again.truncate(1)
    again.log_metrics({"b": 2.0}, step=0)
    assert Path(again.log_dir, "metrics.csv").read_text() == "round,a,b\n0,1.0,2.0\n"


# -- what must be the same -------------------------------------------------------------------


class OwnOptimizer(type(net())):
    """Says its learning rate nowhere but in its optimizer."""

    rate = 0.1

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.rate)


class OtherOptimizer(OwnOptimizer):
    rate = 0.2


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"cohort": 3}, r"federation\.cohort_size: 4 -> 3"),
        ({"federation": {"local_epochs": 2}}, r"federation\.local_epochs: 1 -> 2"),
        ({"federation": {"num_threads": 2}}, "torch threads: 1 -> 2"),
        ({"datamodule": data(batch_size=3)}, r"data\.batch_size: 4 -> 3"),
        ({"datamodule": data(drop_last=True)}, r"data\.drop_last: False -> True"),
        ({"module": net(lr=0.2)}, r"model\.lr: 0\.1 -> 0\.2"),
        ({"module": net(dropout=0.5)}, r"model\.dropout: 0 -> 0\.5"),
        ({"gradient_clip_val": 1.0}, r"trainer\.gradient_clip_val: None -> 1"),
        ({"precision": "bf16-true"}, r"trainer\.precision: 32-true -> bf16-true"),
        ({"cohort": 3, "module": net(lr=0.2)}, r"cohort_size: 4 -> 3; .*model\.lr: "),
    ],
)
def test_other_settings_that_matter_are_listed_and_nothing_is_written(changed, name, tmp_path):
    go_on(tmp_path, rounds=1, module=net())
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    settings = {"module": net(), "rounds": 2, **changed}
    with pytest.raises(CheckpointError, match=name):
        go_on(tmp_path, ckpt="last", **settings)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_other_data_of_the_same_sizes_is_refused(tmp_path):
    go_on(tmp_path, module=net(), rounds=1)
    other = data()
    other.setup()
    other.pooled.train.inputs[3] += 1
    with pytest.raises(CheckpointError, match="dataset: "):
        go_on(tmp_path, module=net(), rounds=2, ckpt="last", datamodule=other)


def test_an_optimizer_that_says_something_else_is_refused(tmp_path):
    go_on(tmp_path, module=OwnOptimizer(), rounds=1)
    go_on(tmp_path, module=OwnOptimizer(), rounds=2, ckpt="last")
    with pytest.raises(CheckpointError, match=r"optimizer: SGD\(.*lr=0\.1.* -> .*lr=0\.2"):
        go_on(tmp_path, module=OtherOptimizer(), rounds=3, ckpt="last")


def test_a_resumed_runs_checkpoint_has_the_settings_of_its_start(tmp_path):
    """The learning rate has dropped by then: it is no other setting."""
    for round_ in (2, 3):
        stop = StopAt("on_train_epoch_start", round_)
        ckpt = "last" if round_ > 2 else None
        with pytest.raises(Stop):
            go_on(tmp_path, module=net(), rounds=4, ckpt=ckpt, callbacks=[stop])
    go_on(tmp_path, module=net(), rounds=4, ckpt="last")


def test_another_network_is_named_by_key_and_shapes(tmp_path):
    go_on(tmp_path, module=net(), rounds=1)
    wider, normed = net(), net(norm=True)
    wider.head = torch.nn.Linear(5, 7)
    with pytest.raises(CheckpointError, match=r"head\.weight is \(3, 5\) .* vs \(7, 5\)"):
        go_on(tmp_path, module=wider, rounds=2, ckpt="last")
    with pytest.raises(CheckpointError, match=r"another network: only the model has body\.1\."):
        go_on(tmp_path, module=normed, rounds=2, ckpt="last")


def test_weights_alone_cannot_be_gone_on_from(tmp_path):
    alone = ModelCheckpoint(filename="alone", save_weights_only=True)
    go_on(tmp_path, module=net(), rounds=1, callbacks=[alone])
    with pytest.raises(CheckpointError, match="it has only weights"):
        go_on(tmp_path, module=net(), rounds=2, ckpt=next(tmp_path.rglob("alone.ckpt")))


@pytest.mark.filterwarnings("ignore:.* selects by test data")  # which is not the point here
def test_what_does_not_matter_may_change(tmp_path):
    fit(lasting(), FedBABU(), rounds=1, folder=tmp_path)
    fit(
        lasting(), FedBABU(), rounds=3, folder=tmp_path, ckpt="last", check_val_every_n_epoch=2,
        callbacks=[EarlyStopping("global/loss", patience=9)], enable_model_summary=True,
        log_every_n_steps=2,
    )  # fmt: skip


def test_a_fingerprint_of_fashion_mnists_size_takes_a_fifth_of_a_second():
    train = TensorExamples(torch.zeros(60_000, 1, 28, 28), torch.arange(60_000) % 10)
    test = TensorExamples(torch.zeros(10_000, 1, 28, 28), torch.arange(10_000) % 10)
    begin = time.perf_counter()
    fingerprint(train, test)
    assert time.perf_counter() - begin < 0.2
    assert len(fingerprint(TensorExamples(torch.zeros(0, 3)))) == 16


# -- one run at a time -----------------------------------------------------------------------


def hold(folder: Path) -> int:
    """Have another process lock a folder; return its pid when it has."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        RunLock(folder).acquire()
        os.write(writer, b"held")
        time.sleep(60)
        os._exit(0)
    os.close(writer)
    assert os.read(reader, 4) == b"held"
    os.close(reader)
    return pid


def test_a_second_run_in_a_folder_is_refused_until_the_first_is_gone(tmp_path):
    go_on(tmp_path, rounds=1)
    run = tmp_path / "lightning_logs" / "version_0"
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    pid = hold(run)
    try:
        with pytest.raises(EnvironmentFailure, match=rf"another run \(pid {pid} on .* in {run}:"):
            go_on(tmp_path, rounds=2, ckpt="last")
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    go_on(tmp_path, rounds=2, ckpt="last")
    assert sorted(os.listdir(run.parent)) == ["version_0"]


def test_a_lock_is_free_again_after_a_run_that_failed(tmp_path):
    with pytest.raises(Stop):
        go_on(tmp_path, callbacks=[StopAt("on_train_epoch_start", 1)])
    lock = RunLock(tmp_path / "lightning_logs" / "version_0")
    lock.acquire()
    lock.release()


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(EnvironmentFailure, match=r"file/run is not writable"):
        RunLock(tmp_path / "file" / "run").acquire()
