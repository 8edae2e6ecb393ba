"""No file is accepted that differs from what was written, be it by one bit or by its end."""

from __future__ import annotations

import io
import os
import random
from pathlib import Path

import pytest
import torch

from fedlightning import AtomicCheckpointIO, FedBABU
from fedlightning.algorithms import Algorithm
from fedlightning.errors import CheckpointError
from fedlightning.storage.checkpoint_reader import read_checkpoint
from fedlightning.storage.digest import append_digest
from tests.toys import fit, net

LONG = pytest.param(20_000, marks=pytest.mark.slow)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> bytes:
    """The last checkpoint of a run whose clients keep something."""
    folder = tmp_path_factory.mktemp("run")
    kept = Algorithm(train="full", share="body")
    fit(net(), kept, folder=folder, logger=False)
    return (folder / "checkpoints" / "last.ckpt").read_bytes()


def accepted(path: Path, content: bytes) -> bool:
    path.write_bytes(content)
    try:
        read_checkpoint(path)
    except CheckpointError as error:
        text = str(error)
    else:
        return True
    assert str(path) in text
    assert "corrupt" in text or "empty" in text
    return False


@pytest.mark.parametrize("times", [1_000, LONG])
def test_no_flipped_bit_is_accepted(times, whole, tmp_path):
    assert accepted(tmp_path / "a.ckpt", whole)
    draw = random.Random(times)
    bits = [draw.randrange(8 * len(whole)) for _ in range(times - 1600)]
    ends = list(range(800)) + [8 * len(whole) - 1 - bit for bit in range(1600)]
    bits += ends if times > 2_000 else draw.sample(ends, 600) + bits[:400]
    flipped = bytearray(whole)
    for bit in bits:
        flipped[bit // 8] ^= 1 << bit % 8
        assert not accepted(tmp_path / "a.ckpt", flipped), f"bit {bit}"
        flipped[bit // 8] ^= 1 << bit % 8


@pytest.mark.parametrize("times", [500, LONG])
def test_no_torn_file_is_accepted(times, whole, tmp_path):
    draw = random.Random(times)
    ends = list(range(150)) + [len(whole) - n for n in range(1, 150)]
    lengths = ends + [draw.randrange(len(whole)) for _ in range(times - len(ends))]
    for length in lengths:
        assert not accepted(tmp_path / "a.ckpt", whole[:length]), length


def test_a_file_with_a_hole_or_something_behind_is_not_accepted(whole, tmp_path):
    path, half = tmp_path / "a.ckpt", len(whole) // 2
    assert not accepted(path, whole[:half] + bytes(len(whole) - half))
    assert not accepted(path, bytes(half) + whole[half:])
    assert not accepted(path, whole[:half] + bytes(512) + whole[half + 512 :])
    assert not accepted(path, whole + b"\0")
    assert not accepted(path, whole + whole)


def test_nothing_is_interpreted_before_the_digest_is_right(whole, tmp_path, monkeypatch):
    def load(*args, **kwargs):
        raise AssertionError("interpreted")

    monkeypatch.setattr(torch, "load", load)
    assert not accepted(tmp_path / "a.ckpt", whole[:-1])
    with pytest.raises(CheckpointError, match="interpreted"):
        read_checkpoint(_written(tmp_path / "b.ckpt", whole))


def _written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.fixture
def content(tmp_path) -> dict:
    """What a checkpoint holds."""
    fit(net(), FedBABU(), folder=tmp_path, logger=False)
    return read_checkpoint(tmp_path / "checkpoints" / "last.ckpt")


def _save(path: Path, content: object, sealed: bool) -> Path:
    AtomicCheckpointIO().save_checkpoint(content, path) if sealed else torch.save(content, path)
    return path


@pytest.mark.parametrize("sealed", [True, False])
def test_weights_that_are_not_finite_are_named(content, sealed, tmp_path):
    content["state_dict"]["head.bias"][1] = float("nan")
    with pytest.raises(CheckpointError, match=r"non-finite values in head\.bias"):
        read_checkpoint(_save(tmp_path / "nan.ckpt", content, sealed))


def test_a_newer_format_is_refused_by_its_number(content, tmp_path):
    content["fedlightning"]["format"] = 99
    with pytest.raises(CheckpointError, match="format 99 > supported 2; upgrade"):
        read_checkpoint(_save(tmp_path / "new.ckpt", content, sealed=False))


def test_an_older_format_is_read(content, tmp_path):
    content["fedlightning"]["format"] = 1
    path = tmp_path / "old.ckpt"
    archive = io.BytesIO()
    torch.save(content, archive)
    append_digest(sealed := bytearray(archive.getvalue()))
    path.write_bytes(sealed)
    assert read_checkpoint(path)["fedlightning"]["format"] == 1


def test_what_no_run_wrote_is_not_a_checkpoint(content, tmp_path):
    del content["fedlightning"]
    for other in (content["state_dict"], [1, 2], content):
        with pytest.raises(CheckpointError, match="not a fedlightning checkpoint"):
            read_checkpoint(_save(tmp_path / "bare.ckpt", other, sealed=False))
    with pytest.raises(CheckpointError, match="no such file"):
        read_checkpoint(tmp_path / "none.ckpt")
    with pytest.raises(CheckpointError, match="is a folder"):
        read_checkpoint(tmp_path)


def test_what_another_program_wrote_anew_carries_no_digest(content, tmp_path):
    with pytest.raises(CheckpointError, match="carries no digest"):
        read_checkpoint(_save(tmp_path / "again.ckpt", content, sealed=False))
    again = read_checkpoint(_save(tmp_path / "sealed.ckpt", content, sealed=True))
    assert again["epoch"] == content["epoch"]


class Payload:
    """What a pickle could run."""

    def __reduce__(self):
        return os.mkdir, ("marker",)


@pytest.mark.filterwarnings("ignore:.*cannot be loaded again")
@pytest.mark.parametrize("sealed", [True, False])
def test_no_checkpoint_runs_code(content, sealed, tmp_path):
    content["payload"] = Payload()
    with pytest.raises(CheckpointError, match=r"holds an object of .*mkdir"):
        read_checkpoint(_save(tmp_path / "evil.ckpt", content, sealed))
    assert not Path("marker").exists()
