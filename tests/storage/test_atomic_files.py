import os

import pytest

from fedlightning.errors import EnvironmentFailure
from fedlightning.storage.files import write_atomically


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
