"""Checkpoints on the command line: what is refused, what is gone on from, and in which words."""

from __future__ import annotations

import resource
import signal

import pytest
import torch

from fedlightning import AtomicCheckpointIO
from fedlightning.storage.checkpoint_reader import read_checkpoint
from fedlightning.storage.locks import RunLock

TWO = "--trainer.max_epochs=2"
THREE = "--trainer.max_epochs=3"


@pytest.fixture
def done(run, version):
    """The folder of a run of two rounds."""
    assert run("B", TWO).code == 0
    return version


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_torn_newest_checkpoint_is_named_and_the_one_before_is_used(run, done):
    last = done / "checkpoints" / "last.ckpt"
    whole, metrics = last.read_bytes(), (done / "metrics.csv").read_bytes()
    for words in (["last"], [str(done)]):
        last.write_bytes(whole[: len(whole) // 2])
        ended = run("B", TWO, f"--ckpt_path={words[0]}")
        assert ended.code == 0
        assert "last.ckpt is corrupt: using round 0, from previous.ckpt beside it." in ended.err
        assert len(ended.err.splitlines()) == 1
        assert (done / "metrics.csv").read_bytes() == metrics
        again, first = read_checkpoint(last), torch.load(done / "checkpoints/last.ckpt")
        assert again["epoch"] == first["epoch"] == 1


def test_a_torn_file_that_is_asked_for_by_name_is_refused(run, done):
    last = done / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:-1])
    before = files(done)
    ended = run("B", THREE, f"--ckpt_path={last}")
    assert ended.code == 4
    assert "last.ckpt' is corrupt" in ended.error
    assert "previous.ckpt is whole" in ended.error
    assert files(done) == before


def test_a_newer_format_and_broken_weights(run, done, tmp_path):
    content = read_checkpoint(done / "checkpoints" / "last.ckpt")
    content["fedlightning"]["format"] = 99
    torch.save(content, tmp_path / "new.ckpt")
    ended = run("B", "--ckpt_path=new.ckpt")
    assert ended.code == 4
    assert ended.error.startswith("error: ckpt_path='new.ckpt': format 99 > supported 2; upgrade")
    content["state_dict"]["body.1.weight"][0, 0] = float("nan")
    AtomicCheckpointIO().save_checkpoint(content, tmp_path / "nan.ckpt")
    for command in (["B"], ["test", "--config=ok.yaml"]):
        ended = run(*command, "--ckpt_path=nan.ckpt")
        assert ended.code == 4
        assert "non-finite values in body.1.weight" in ended.error


def test_other_settings_are_listed_and_nothing_is_changed(run, done):
    before = files(done)
    options = ["--federation.cohort_size=3", "--data.batch_size=50", "--model.lr=0.5"]
    ended = run("B", THREE, "--ckpt_path=last", *options)
    assert ended.code == 4
    for text in (
        "federation.cohort_size: 2 -> 3",
        "data.batch_size: 100 -> 50",
        "model.lr: 0.1 -> 0.5",
    ):
        assert text in ended.error
    assert files(done) == before


def test_the_config_of_a_run_that_went_on_runs_all_of_it_again(run, done):
    assert run("B", THREE, "--ckpt_path=last").code == 0
    assert run("fit", "--config", str(done / "config.yaml")).code == 0
    again = done.parent / "version_1"
    assert (again / "metrics.csv").read_text().count("\n") == 4
    assert (again / "config.yaml").read_text() == (done / "config.yaml").read_text()


def test_a_second_run_in_the_folder_is_refused(run, done):
    lock = RunLock(done)
    lock.acquire()
    before = files(done)
    ended = run("B", THREE, "--ckpt_path=last")
    lock.release()
    assert ended.code == 6
    assert "another run (pid " in ended.error
    assert str(done.name) in ended.error
    assert files(done) == before


def test_a_full_disk_names_the_round_that_is_kept_and_the_run_goes_on_later(run, version):
    """A limit on the size of files is a full disk; what clients keep makes the file grow."""
    options = [
        "--model.hidden=[256]", "--federation.algorithm=fedlightning.Algorithm",
        "--federation.algorithm.train=full", "--federation.algorithm.share=head",
        "--trainer.max_epochs=8",
    ]  # fmt: skip
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, before[1]))
    try:
        ended = run("B", *options)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert ended.code == 6
    checkpoint = read_checkpoint(version / "checkpoints" / "last.ckpt")
    kept = checkpoint["epoch"]
    assert 0 < kept < 7
    assert "no space left (File too large)" in ended.error
    assert f"round {kept} kept: " in ended.error
    assert not list(version.rglob(".*"))
    assert run("B", *options, "--ckpt_path=last").code == 0
    assert (version / "metrics.csv").read_text().count("\n") == 9


@pytest.mark.parametrize("command", ["fit", "test", "predict"])
def test_a_requeued_jobs_checkpoint_is_asked_for_and_there_is_none(run, base, tmp_path, command):
    before = sorted(path.name for path in tmp_path.iterdir())
    ended = run(command, "--config=ok.yaml", "--ckpt_path=hpc")
    assert ended.code == 4
    assert ended.error.startswith("error: ckpt_path='hpc': no hpc_ckpt_*.ckpt of a preempted job")
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_requeued_jobs_checkpoint_is_checked_like_any_other(run, done, tmp_path):
    whole = (done / "checkpoints" / "last.ckpt").read_bytes()
    (tmp_path / "hpc_ckpt_1.ckpt").write_bytes(whole)
    (tmp_path / "hpc_ckpt_2.ckpt").write_bytes(whole[:-9])
    ended = run("B", THREE, "--ckpt_path=hpc")
    assert ended.code == 4
    assert "hpc_ckpt_2.ckpt' is corrupt" in ended.error
    (tmp_path / "hpc_ckpt_2.ckpt").write_bytes(whole)
    ended = run("B", THREE, "--ckpt_path=hpc", "--data.batch_size=50")
    assert ended.code == 4
    assert "data.batch_size: 100 -> 50" in ended.error
    assert [path.name for path in done.parent.iterdir()] == ["version_0"]
    assert run("B", THREE, "--ckpt_path=hpc").code == 0


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_a_checkpoint_that_means_something_else_is_evaluated_with_one_warning(run, done, command):
    assert run(command, "--config=ok.yaml", "--ckpt_path=last").err == ""
    ended = run(
        command, "--config=ok.yaml", "--ckpt_path=last", "--federation.algorithm=FedAvg",
        "--model.head=body",
    )  # fmt: skip
    assert ended.code == 0
    (warning,) = ended.err.splitlines()
    assert warning.startswith("warning: ")
    other = "last.ckpt was trained with other settings than those used to evaluate it: "
    assert f"{other}federation.algorithm: " in warning
    assert "head: head -> body" in warning


def test_another_network_is_refused_in_evaluation_too(run, done):
    before = files(done.parent)
    ended = run("test", "--config=ok.yaml", "--ckpt_path=last", "--model.hidden=[5]")
    assert ended.code == 4
    assert "body.1.weight is (4, 64) in the checkpoint, vs (5, 64) in the model" in ended.error
    assert files(done.parent) == before


def test_what_clients_have_kept_belongs_to_their_partition(run, version):
    fedper = ["--federation.algorithm=fedlightning.Algorithm"]
    fedper += ["--federation.algorithm.train=full", "--federation.algorithm.share=body"]
    assert run("B", *fedper).code == 0
    words = ["test", "--config=ok.yaml", "--ckpt_path=last", *fedper]
    assert run(*words).err == ""
    assert "partition: " in run(*words, "--data.partition.per_client=4").err
