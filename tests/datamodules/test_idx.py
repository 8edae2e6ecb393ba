import gzip
import struct

import numpy as np
import pytest

from fedlightning.datamodules.vision.idx import find_idx, read_idx
from fedlightning.errors import DataError

IMAGES = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)


def encoded(array):
    return (
        bytes([0, 0, 8, array.ndim])
        + struct.pack(f">{array.ndim}I", *array.shape)
        + array.tobytes()
    )


@pytest.fixture(params=["train-images-idx3-ubyte", "train-images-idx3-ubyte.gz"])
def write(tmp_path, request):
    path = tmp_path / request.param

    def to_file(content):
        path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
        return path

    return to_file


def test_what_is_written_is_read(write):
    assert np.array_equal(read_idx(write(encoded(IMAGES))), IMAGES)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00\x00",
        b"\x00\x00\x08\x03\x00\x00",
        b"\x00\x00\x0d\x01\x00\x00\x00\x00",
        b"\x00\x00\x08\x00",
        b"<html>not found</html>",
        encoded(IMAGES)[:-1],
        encoded(IMAGES) + b"x",
        b"\x00\x00\x08\x03" + b"\xff" * 12,
    ],
)
def test_a_damaged_file_is_called_corrupt(write, content):
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte.* is corrupt"):
        read_idx(write(content))


def test_a_cut_archive_is_called_corrupt(tmp_path):
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(encoded(IMAGES))[:-12])
    with pytest.raises(DataError, match="corrupt"):
        read_idx(path)


def test_an_archive_that_is_none_is_called_corrupt(tmp_path):
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(encoded(IMAGES))
    with pytest.raises(DataError, match="corrupt"):
        read_idx(path)


def test_a_flipped_bit_in_an_archive_is_called_corrupt(tmp_path):
    path = tmp_path / "train-images-idx3-ubyte.gz"
    content = bytearray(gzip.compress(encoded(IMAGES)))
    content[-8] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="corrupt"):
        read_idx(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"nowhere cannot be read: No such file"):
        read_idx(tmp_path / "nowhere")


def test_the_first_folder_that_has_the_data_is_taken(tmp_path):
    folders = [tmp_path / "a", tmp_path / "b", tmp_path / "c"]
    for folder in folders[1:]:
        folder.mkdir()
        (folder / "x").touch()
        (folder / "y.gz").touch()
    assert find_idx("Toy", folders, ["x", "y"]) == [folders[1] / "x", folders[1] / "y.gz"]


def test_missing_data_say_where_they_were_looked_for_and_what_to_do(tmp_path):
    with pytest.raises(DataError) as error:
        find_idx("Toy", [tmp_path / "a", tmp_path / "b"], ["x"])
    for part in (
        "Toy",
        str(tmp_path / "a"),
        str(tmp_path / "b"),
        "root",
        "download=true",
        "network",
    ):
        assert part in str(error.value)


def test_half_of_the_data_is_not_enough(tmp_path):
    (tmp_path / "x").touch()
    with pytest.raises(DataError, match=r"has x but not y"):
        find_idx("Toy", [tmp_path], ["x", "y"])
