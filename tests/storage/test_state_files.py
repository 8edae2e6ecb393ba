import pytest
import torch

from fedlightning.errors import CheckpointError
from fedlightning.storage.client_files import read_state, write_states
from tests.toys import same

STATES = {
    3: {"head.weight": torch.arange(6.0).view(2, 3), "head.steps": torch.tensor(7)},
    31: {"head.weight": -torch.ones(2, 3), "head.steps": torch.tensor(0)},
}


def test_states_come_back_client_by_client(tmp_path):
    files = write_states(tmp_path / "personal", STATES)
    assert all(same(read_state(files[client], client), STATES[client]) for client in STATES)


def test_a_cohort_is_one_file(tmp_path):
    assert len(set(write_states(tmp_path, STATES).values())) == 1
    assert len(list(tmp_path.iterdir())) == 1


def test_the_same_states_are_the_same_file(tmp_path):
    many = dict.fromkeys(range(20), STATES[3])
    assert write_states(tmp_path, many) == write_states(tmp_path, many)
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.bool, torch.int64])
def test_any_dtype_and_memory_layout_is_kept(dtype, tmp_path):
    state = {"weight": torch.ones(2, 3, 4, 4, dtype=dtype).to(memory_format=torch.channels_last)}
    assert same(read_state(write_states(tmp_path, {0: state})[0], 0), state)


def test_a_flipped_bit_is_found(tmp_path):
    path = write_states(tmp_path, STATES)[3]
    content = bytearray(path.read_bytes())
    for position in (len(content) - 1, len(content) // 2, 20):
        flipped = content.copy()
        flipped[position] ^= 1
        path.write_bytes(flipped)
        with pytest.raises(CheckpointError, match=r"the state of client \d+ in .*safetensors"):
            _ = read_state(path, 3), read_state(path, 31)


def test_a_file_that_is_gone_is_named(tmp_path):
    path = write_states(tmp_path, STATES)[3]
    path.unlink()
    with pytest.raises(CheckpointError, match=f"the state of client 3 in {path} cannot be read"):
        read_state(path, 3)
