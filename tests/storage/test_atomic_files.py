import os
import resource
from contextlib import contextmanager

import pytest

from fedlightning.errors import EnvironmentFailure
from fedlightning.storage.files import append_line, write_atomically


def test_a_file_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "note.txt"
    path.write_bytes(b"a long old text")
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"


def test_the_file_has_the_mode_that_the_umask_gives(tmp_path):
    (tmp_path / "plain").write_bytes(b"")
    write_atomically(tmp_path / "ours", b"")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing_behind(tmp_path, monkeypatch):
    path = tmp_path / "note.txt"
    path.write_bytes(b"old")

    def full_disk(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(EnvironmentFailure, match=r"cannot write .*note\.txt: No space left"):
        write_atomically(path, b"new")
    assert [entry.name for entry in tmp_path.iterdir()] == ["note.txt"]
    assert path.read_bytes() == b"old"


def test_a_folder_that_is_a_file_is_named_in_the_error(tmp_path):
    (tmp_path / "runs").write_bytes(b"")
    with pytest.raises(EnvironmentFailure, match=r"cannot write .*runs/note\.txt"):
        write_atomically(tmp_path / "runs" / "note.txt", b"new")


@contextmanager
def room_for(path, more):
    """Let no file of this process grow beyond a file's size and some bytes more."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + more, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("more", [0, 1, 5])
def test_a_line_for_which_there_is_no_room_is_refused_without_a_trace(tmp_path, more):
    path = tmp_path / "names.txt"
    path.write_text("first\n")
    with (
        room_for(path, more),
        pytest.raises(EnvironmentFailure, match=r"cannot write .*names\.txt: .*[Nn]o space left"),
    ):
        append_line(path, "second")
    assert path.read_text() == "first\n"
    with room_for(path, len("second\n")):
        append_line(path, "second")
    assert path.read_text() == "first\nsecond\n"


@pytest.mark.parametrize("torn", ["", "fir", "first\nsec"])
def test_a_line_does_not_grow_out_of_a_torn_one(tmp_path, torn):
    path = tmp_path / "names.txt"
    path.write_text(torn)
    append_line(path, "third")
    assert path.read_text().split("\n") == ["first"] * ("\n" in torn) + ["third", ""]
