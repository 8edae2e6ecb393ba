"""A checkpoint takes its name when it is complete, and the one before stays."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO
from safetensors.torch import load_file

from fedlightning import AtomicCheckpointIO, FedAvg, FederatedTrainer
from fedlightning.errors import ConfigError, EnvironmentFailure
from fedlightning.storage.checkpoint_io import latest_checkpoint
from fedlightning.storage.checkpoint_reader import read_checkpoint, rounds_in
from tests.toys import Net, fit, net, same, state, trainer


def content(rounds: int) -> dict:
    """What a checkpoint after so many rounds holds, as far as matters here."""
    return {
        "state_dict": {"weight": torch.full((2,), float(rounds))},
        "loops": {"fit_loop": {"state_dict": {"round": rounds}}},
    }


def rounds(path: Path) -> int:
    return rounds_in(read_checkpoint(path))


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder with the checkpoints of rounds 1 and 2."""
    io = AtomicCheckpointIO()
    for done in (1, 2):
        io.save_checkpoint(content(done), tmp_path / "checkpoints" / "last.ckpt")
    return tmp_path / "checkpoints"


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_the_last_two_are_kept(folder):
    assert (rounds(folder / "last.ckpt"), rounds(folder / "previous.ckpt")) == (2, 1)
    AtomicCheckpointIO().save_checkpoint(content(3), folder / "last.ckpt")
    assert (rounds(folder / "last.ckpt"), rounds(folder / "previous.ckpt")) == (3, 2)
    assert names(folder) == ["last.ckpt", "previous.ckpt"]


def test_the_same_round_written_again_does_not_push_the_one_before_out(folder):
    AtomicCheckpointIO().save_checkpoint(content(2), folder / "last.ckpt")
    assert rounds(folder / "previous.ckpt") == 1


def test_a_bad_file_does_not_take_the_place_of_a_good_one(folder):
    (folder / "last.ckpt").write_bytes(b"torn")
    AtomicCheckpointIO().save_checkpoint(content(2), folder / "last.ckpt")
    assert (rounds(folder / "last.ckpt"), rounds(folder / "previous.ckpt")) == (2, 1)


def test_other_files_are_replaced_alone(tmp_path):
    io = AtomicCheckpointIO()
    for done in (1, 2):
        io.save_checkpoint(content(done), tmp_path / "best.ckpt")
    assert names(tmp_path) == ["best.ckpt"]


class Killed(BaseException):
    """As if the process were gone."""


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("step", range(12))
def test_a_process_killed_between_any_two_steps_leaves_a_good_checkpoint(
    folder, step, links, monkeypatch
):
    """Every call that changes a name is a place to be killed at; no clean-up runs afterwards."""
    calls = 0

    def counted(function, works=True):
        def call(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls > step:
                raise Killed
            if not works:
                raise OSError(errno.EPERM, "no links here")
            return function(*args, **kwargs)

        return call

    monkeypatch.setattr(os, "link", counted(os.link, works=links))
    for name in ("replace", "fsync"):
        monkeypatch.setattr(os, name, counted(getattr(os, name)))
    monkeypatch.setattr(Path, "unlink", counted(Path.unlink))
    finished = True
    try:
        AtomicCheckpointIO().save_checkpoint(content(3), folder / "last.ckpt")
    except Killed:
        finished = False
    monkeypatch.undo()
    if links:
        assert rounds(folder / "last.ckpt") in (2, 3)
        assert rounds(folder / "previous.ckpt") in (1, 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedlightning.storage.checkpoint_io.rank_zero_warn", lambda *_: None)
        assert rounds(latest_checkpoint(folder.parent)) in ((3,) if finished else (2, 3))


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "no space left"),
        (errno.EFBIG, "no space left"),
        (errno.EDQUOT, "no space left"),
        (errno.EACCES, "Permission denied"),
    ],
)
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_what_cannot_be_written_leaves_the_round_before_and_says_so(
    folder, number, words, call, monkeypatch
):
    before = {name: (folder / name).read_bytes() for name in names(folder)}

    def full(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, full)
    with pytest.raises(
        EnvironmentFailure, match=f"(?i){words}.*round 1 kept: .*last.ckpt is whole"
    ):
        AtomicCheckpointIO().save_checkpoint(content(3), folder / "last.ckpt")
    monkeypatch.undo()
    assert {name: (folder / name).read_bytes() for name in names(folder)} == before


def test_without_any_round_the_error_says_so(tmp_path):
    (tmp_path / "checkpoints").touch()
    with pytest.raises(EnvironmentFailure, match=r"cannot write .*no round is saved yet"):
        AtomicCheckpointIO().save_checkpoint(content(1), tmp_path / "checkpoints" / "last.ckpt")


def test_urls_are_refused():
    with pytest.raises(ConfigError, match="is a URL"):
        AtomicCheckpointIO().save_checkpoint(content(1), "s3://bucket/last.ckpt")


def test_weights_only_cannot_be_switched_off(folder):
    with pytest.raises(ConfigError, match="would let a checkpoint run code"):
        AtomicCheckpointIO().load_checkpoint(folder / "last.ckpt", weights_only=False)


def test_a_state_that_could_not_be_loaded_is_warned_of_once(tmp_path):
    io, bad = AtomicCheckpointIO(), {**content(1), "callbacks": {"Mine": {"path": Path("x")}}}
    with pytest.warns(UserWarning, match=r"last\.ckpt cannot be loaded again"):
        io.save_checkpoint(bad, tmp_path / "last.ckpt")
    io.save_checkpoint(bad, tmp_path / "last.ckpt")


# -- in a trainer ----------------------------------------------------------------------------


def test_it_is_the_trainers_default_and_another_one_takes_its_place():
    assert isinstance(FederatedTrainer(logger=False).strategy.checkpoint_io, AtomicCheckpointIO)
    stock = FederatedTrainer(logger=False, plugins=[TorchCheckpointIO()])
    assert isinstance(stock.strategy.checkpoint_io, TorchCheckpointIO)
    several = trainer(devices=2, accelerator="cpu", strategy="ddp_fork")
    assert isinstance(several.strategy.checkpoint_io, AtomicCheckpointIO)


def test_stock_tools_read_the_file(tmp_path):
    module = net(dropout=0.25)
    fit(module, FedAvg(), folder=tmp_path, logger=False)
    path = tmp_path / "checkpoints" / "last.ckpt"
    assert same(torch.load(path, weights_only=True, mmap=True)["state_dict"], state(module))
    again = Net.load_from_checkpoint(path)
    assert same(state(again), state(module))
    assert again.hparams["dropout"] == 0.25


def test_the_global_model_is_exported_when_the_run_is_done(tmp_path):
    module = net()
    fit(module, FedAvg(), rounds=3, folder=tmp_path, logger=False)
    assert same(load_file(tmp_path / "checkpoints" / "model.safetensors"), state(module))
    assert names(tmp_path / "checkpoints") == ["last.ckpt", "model.safetensors", "previous.ckpt"]
