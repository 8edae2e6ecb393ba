"""What clients had kept in rounds that no checkpoint goes back to is removed, and nothing else."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from pytorch_lightning.callbacks import ModelCheckpoint

from fedlightning import Algorithm, AtomicCheckpointIO
from fedlightning.errors import EnvironmentFailure
from fedlightning.storage.checkpoint_reader import loop_state, read_checkpoint
from fedlightning.storage.cleanup import ClientStateFiles
from fedlightning.storage.client_files import read_state
from fedlightning.storage.client_store import ClientStore
from tests.toys import data, fit, net, same, state

FEDPER_LIKE = Algorithm(train="full", share="body")
ON_DISK = {"personal_memory_mb": 0}
EVERYBODY = {"cohort": 4, "federation": ON_DISK}


def named(checkpoint: Path) -> set[str]:
    """Return the files that a checkpoint needs."""
    loop = loop_state(read_checkpoint(checkpoint))
    return {Path(name).name for name in loop["extra"]["personal"]["files"]}


def present(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*.safetensors") if path.name != "model.safetensors"}


def run(folder, rounds, module=None, **kwargs):
    module = module or net(lr_milestones=())
    return fit(module, FEDPER_LIKE, rounds=rounds, folder=folder, **{**EVERYBODY, **kwargs})


def test_a_long_run_keeps_the_files_of_its_last_two_checkpoints(tmp_path):
    checkpoints = Path(run(tmp_path, 6).log_dir) / "checkpoints"
    last, previous = named(checkpoints / "last.ckpt"), named(checkpoints / "previous.ckpt")
    assert len(last) == len(previous) == 1
    assert present(tmp_path) == last | previous


def test_every_checkpoint_that_is_kept_keeps_its_files(tmp_path):
    keep = ModelCheckpoint(filename="{epoch}", every_n_epochs=2, save_top_k=-1, monitor=None)
    built = run(tmp_path, 6, callbacks=[keep])
    kept = list((Path(built.log_dir) / "checkpoints").glob("*.ckpt"))
    assert len(kept) == 5
    assert present(tmp_path) == set().union(*map(named, kept))
    for checkpoint in kept:
        states = ClientStore()
        loop = loop_state(read_checkpoint(checkpoint))
        states.load_state_dict(loop["extra"]["personal"])
        assert [bool(states.get(client)) for client in states] == [True] * 4


def test_a_resumed_run_reads_what_older_checkpoints_need(tmp_path):
    built = run(tmp_path, 2)
    checkpoints = Path(built.log_dir) / "checkpoints"
    shutil.copy(checkpoints / "last.ckpt", checkpoints / "mine.ckpt")
    whole, resumed = net(lr_milestones=()), net(seed=9, lr_milestones=())
    run(tmp_path, 5, resumed, ckpt=checkpoints / "last.ckpt")
    run(tmp_path / "whole", 5, whole)
    assert same(state(whole), state(resumed))
    shutil.rmtree(tmp_path / "whole")
    wanted = {"last.ckpt", "previous.ckpt", "mine.ckpt"}
    assert {path.name for path in checkpoints.glob("*.ckpt")} == wanted
    assert present(tmp_path) == set().union(*(named(checkpoints / name) for name in wanted))


def test_a_run_that_branches_off_has_files_of_its_own(tmp_path):
    first = run(tmp_path / "a", 2, federation={**ON_DISK}, cohort=2)
    checkpoint = shutil.copy(
        Path(first.log_dir) / "checkpoints" / "last.ckpt", tmp_path / "branch.ckpt"
    )
    branch = run(tmp_path / "b", 3, cohort=2, ckpt=checkpoint)
    shutil.rmtree(tmp_path / "a")
    last = Path(branch.log_dir) / "checkpoints" / "last.ckpt"
    personal = Path(branch.log_dir) / "personal"
    files = loop_state(read_checkpoint(last))["extra"]["personal"]["files"]
    assert {Path(name).parent for name in files} == {personal}
    for name, clients in files.items():
        for client in clients:
            assert read_state(Path(name), client)


def test_files_that_cannot_be_linked_are_copied(tmp_path, monkeypatch):
    states = ClientStore(lambda: tmp_path / "a", max_bytes=0)
    states.update({1: {"w": torch.ones(2)}})
    branch = ClientStore(lambda: tmp_path / "b", max_bytes=0)
    branch.load_state_dict(states.state_dict())

    def refuse(*_):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    branch.update({2: {"w": torch.zeros(2)}})
    shutil.rmtree(tmp_path / "a")
    assert branch.get(1)["w"].tolist() == [1, 1]


def checkpoint_of(path: Path, *files: Path) -> Path:
    personal = {"files": {str(file): [0] for file in files}}
    loop = {"state_dict": {"extra": {"personal": personal}, "round": 1}}
    content = {"state_dict": {}, "loops": {"fit_loop": loop}}
    AtomicCheckpointIO().save_checkpoint(content, path)
    return path


@pytest.fixture
def folder(tmp_path):
    """A run with three files, one checkpoint inside it, and one beside all runs."""
    files = [tmp_path / "logs" / "run" / "personal" / f"{name}.safetensors" for name in "abc"]
    files[0].parent.mkdir(parents=True)
    for file in files:
        file.touch()
    checkpoint_of(tmp_path / "logs" / "run" / "deep" / "checkpoints" / "best.ckpt", files[0])
    checkpoint_of(tmp_path / "hpc_ckpt_1.ckpt", files[1])
    return ClientStateFiles(files[0].parent, tmp_path / "logs" / "run", tmp_path)


def test_only_what_nobody_names_is_removed(folder):
    assert [path.stem for path in folder.remove_superseded([])] == ["c"]
    assert folder.remove_superseded([]) == []


def test_what_is_in_use_or_was_saved_elsewhere_stays(folder, tmp_path):
    third = folder.folder / "c.safetensors"
    assert folder.remove_superseded([third]) == []
    elsewhere = checkpoint_of(tmp_path / "elsewhere" / "x.ckpt", third)
    folder.saved(elsewhere, [third])
    assert folder.remove_superseded([]) == []
    elsewhere.unlink()
    assert [path.stem for path in folder.remove_superseded([])] == ["c"]


def test_nothing_is_removed_while_a_checkpoint_cannot_be_read(folder, monkeypatch):
    def unreadable(path):
        raise EnvironmentFailure(f"cannot read {path}")

    monkeypatch.setattr("fedlightning.storage.cleanup.read_checkpoint", unreadable)
    assert folder.remove_superseded([]) == []
    assert len(list(folder.folder.iterdir())) == 3


def test_a_torn_checkpoint_needs_nothing(folder, tmp_path):
    (tmp_path / "hpc_ckpt_1.ckpt").write_bytes(b"torn")
    assert sorted(path.stem for path in folder.remove_superseded([])) == ["b", "c"]


def test_states_in_memory_leave_the_disk_alone(tmp_path):
    fit(net(), FEDPER_LIKE, folder=tmp_path, datamodule=data())
    assert present(tmp_path) == set()
