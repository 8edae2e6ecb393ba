"""Personal models on disk: whole, of one personalization, and of the global model they name."""

from __future__ import annotations

import hashlib
import json
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from fedlightning.errors import CheckpointError, ConfigError, EnvironmentFailure
from fedlightning.personalization.models.reader import read_index, read_personal
from fedlightning.personalization.models.writer import About, PersonalWriter, state_digest
from fedlightning.storage.run_layout import remove_unfinished

STATE = {"head.weight": torch.arange(6.0).reshape(2, 3), "head.bias": torch.ones(2)}


def about(**changes):
    return About(**{"round": 4, "part": "head", "global_sha256": "ab" * 32, **changes})


def written(run, clients=(0, 7), **changes):
    writer = PersonalWriter(run, about(**changes))
    writer.open()
    for client in clients:
        writer.keep(client, {key: value + client for key, value in STATE.items()})
    writer.publish()
    return run / "personalized"


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_says_whose_it_is_and_what_it_goes_with(tmp_path):
    folder = written(tmp_path, input_shape=(1, 8, 8), input_dtype="float32")
    assert names(tmp_path) == ["personalized"]
    assert names(folder) == ["client_00000.safetensors", "client_00007.safetensors", "index.json"]
    with safe_open(folder / "client_00007.safetensors", "pt") as file:
        header = file.metadata()
        assert torch.equal(file.get_tensor("head.bias"), STATE["head.bias"] + 7)
    assert header.pop("fedlightning")
    assert header == {
        "format": "1", "client": "7", "round": "4", "part": "head", "global_sha256": "ab" * 32,
    }  # fmt: skip
    index = read_index(tmp_path)
    assert index.about == about(input_shape=(1, 8, 8), input_dtype="float32")
    for client, digest in index.digests.items():
        content = (folder / f"client_{client:05d}.safetensors").read_bytes()
        assert hashlib.sha256(content).hexdigest() == digest


def test_the_bytes_are_a_function_of_the_content(tmp_path):
    contents = set()
    for turn in range(5):  # the library itself writes the metadata in a random order
        folder = written(tmp_path / str(turn))
        contents.add((folder / "client_00007.safetensors").read_bytes())
    assert len(contents) == 1
    state = read_personal(read_index(tmp_path / "0"), 7)
    assert torch.equal(state["head.weight"], STATE["head.weight"] + 7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64, torch.bool])
def test_dtypes_and_scalars_come_back(tmp_path, dtype):
    writer = PersonalWriter(tmp_path, about())
    writer.open()
    state = {"a": torch.tensor(1).to(dtype), "b": torch.ones(3, 2).t().to(dtype)}
    writer.keep(0, state)
    writer.publish()
    read = load_file(tmp_path / "personalized" / "client_00000.safetensors")
    assert all(read[key].dtype == dtype and torch.equal(read[key], state[key]) for key in state)


def test_a_digest_does_not_depend_on_layout_and_does_on_everything_else():
    state = {"w": torch.rand(4, 3, 2, 2), "n": torch.tensor(3)}
    digest = state_digest(state)
    assert state_digest({**state, "w": state["w"].to(memory_format=torch.channels_last)}) == digest
    for other in (
        {**state, "n": torch.tensor(3.0)},
        {"w": state["w"].reshape(3, 4, 2, 2), "n": state["n"]},
        {"w": state["w"], "m": state["n"]},
    ):
        assert state_digest(other) != digest


# -- one personalization or another ----------------------------------------------------------


def test_a_later_personalization_takes_the_place_of_all_of_the_former_one(tmp_path):
    written(tmp_path, clients=(0, 1, 2))
    folder = written(tmp_path, clients=(2, 5), round=9)
    assert names(folder) == ["client_00002.safetensors", "client_00005.safetensors", "index.json"]
    assert read_index(tmp_path).about.round == 9
    assert names(tmp_path) == ["personalized"]


def test_the_former_one_stays_until_the_new_one_is_whole(tmp_path):
    written(tmp_path)
    writer = PersonalWriter(tmp_path, about(round=9))
    writer.open()
    writer.keep(0, STATE)
    assert read_index(tmp_path).about.round == 4
    assert torch.equal(read_personal(read_index(tmp_path), 0)["head.bias"], STATE["head.bias"])
    writer.discard()
    assert names(tmp_path) == ["personalized"]


@pytest.mark.parametrize("moment", ["filling", "swapping", "clearing"])
def test_what_a_killed_process_leaves_is_cleared_away(tmp_path, moment):
    written(tmp_path, round=4)
    half = PersonalWriter(tmp_path, about(round=9))
    half.open()
    if moment == "swapping":  # the former one is aside, the new one has not its name yet
        (tmp_path / "personalized").rename(tmp_path / ".personalized.old")
    elif moment == "clearing":
        shutil.copytree(tmp_path / "personalized", tmp_path / ".personalized.old")
    remove_unfinished(tmp_path)
    assert names(tmp_path) == ["personalized"]
    assert read_index(tmp_path).about.round == 4


def test_a_disk_that_takes_no_more_is_the_machines_fault_and_the_former_one_stays(tmp_path):
    written(tmp_path)
    writer = PersonalWriter(tmp_path, about(round=9))
    writer.open()
    shutil.rmtree(tmp_path / ".personalized.new")
    with pytest.raises(EnvironmentFailure, match=r"cannot write .*client_00000\.safetensors"):
        writer.keep(0, STATE)
    writer.discard()
    assert read_index(tmp_path).about.round == 4
    with pytest.raises(EnvironmentFailure, match="cannot create"):
        PersonalWriter(tmp_path / "personalized" / "index.json", about()).open()


# -- what is refused -------------------------------------------------------------------------


def test_a_run_without_personal_models(tmp_path):
    with pytest.raises(CheckpointError, match="no personal models are saved there"):
        read_index(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda index: {**index, "format": 2}, "format 2 > supported 1"),
        (lambda index: [index], "damaged"),
        (lambda index: {**index, "clients": ["0"]}, "damaged"),
        (lambda index: {**index, "clients": {"zero": "ab"}}, "damaged"),
        (lambda index: {key: index[key] for key in index if key != "round"}, "damaged"),
    ],
)
def test_an_index_that_is_none(tmp_path, change, message):
    path = written(tmp_path) / "index.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(CheckpointError, match=message):
        read_index(tmp_path)
    path.write_text("{")
    with pytest.raises(CheckpointError, match="not JSON"):
        read_index(tmp_path)


def test_every_flipped_bit_is_noticed(tmp_path):
    path = written(tmp_path) / "client_00007.safetensors"
    whole = path.read_bytes()
    index = read_index(tmp_path)
    for place in range(0, len(whole), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(CheckpointError, match="damaged"):
            read_personal(index, 7)
    path.write_bytes(whole[:-1])
    with pytest.raises(CheckpointError, match="damaged"):
        read_personal(index, 7)


def test_another_clients_file_and_one_of_another_global_model(tmp_path):
    folder = written(tmp_path)
    other = (folder / "client_00000.safetensors").read_bytes()
    (folder / "client_00007.safetensors").write_bytes(other)
    content = json.loads((folder / "index.json").read_text())
    content["clients"]["7"] = content["clients"]["0"]
    (folder / "index.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="of another client"):
        read_personal(read_index(tmp_path), 7)
    content["global_sha256"] = "cd" * 32
    (folder / "index.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="another global model"):
        read_personal(read_index(tmp_path), 0)


def test_clients_who_have_none_and_models_that_diverged(tmp_path):
    writer = PersonalWriter(tmp_path, about())
    writer.open()
    writer.keep(3, {"head.bias": torch.tensor([1.0, float("nan")])})
    writer.publish()
    index = read_index(tmp_path)
    with pytest.raises(ConfigError, match=r"client 4 has no personal model .* those of 3"):
        read_personal(index, 4)
    with pytest.raises(CheckpointError, match=r"non-finite values in head\.bias"):
        read_personal(index, 3)
    (tmp_path / "personalized" / "client_00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_personal(index, 3)
