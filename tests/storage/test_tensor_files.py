"""Files of tensors keep their bytes from version to version: digests of them are compared."""

from __future__ import annotations

import json

import torch
from safetensors.torch import load, save

from fedlightning.storage.tensor_files import metadata_of, serialize
from tests.toys import same

TENSORS = {"b": torch.tensor([1.0, 2.0]), "a": torch.tensor(3), "c": torch.ones(2, 1).half()}


def test_with_one_entry_of_metadata_the_file_is_the_librarys():
    assert serialize(TENSORS, {"format": "pt"}) == save(TENSORS, {"format": "pt"})


def test_with_more_entries_the_whole_header_is_sorted():
    header = {
        "__metadata__": {"client": "7", "round": "3"},
        "a": {"data_offsets": [0, 8], "dtype": "I64", "shape": []},
        "b": {"data_offsets": [8, 16], "dtype": "F32", "shape": [2]},
        "c": {"data_offsets": [16, 20], "dtype": "F16", "shape": [2, 1]},
    }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    data = b"".join(TENSORS[name].numpy().tobytes() for name in "abc")
    expected = len(text).to_bytes(8, "little") + text + data
    for metadata in ({"round": "3", "client": "7"}, {"client": "7", "round": "3"}):
        assert serialize(TENSORS, metadata) == expected
    assert metadata_of(expected) == header["__metadata__"]


def test_tensors_may_share_memory_and_have_any_layout():
    weight = torch.arange(24.0).view(1, 2, 3, 4)
    tensors = {
        "tied": weight,
        "weight": weight,
        "channels_last": weight.to(memory_format=torch.channels_last),
        "transposed": weight.transpose(1, 3),
        "learned": torch.nn.Parameter(weight),
    }
    assert same(load(serialize(tensors, {"format": "pt"})), tensors)
