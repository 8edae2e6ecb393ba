from pathlib import Path

import pytest
import torch

from fedlightning import Algorithm, AtomicCheckpointIO, PersonalizationCallback
from fedlightning.errors import CheckpointError, ConfigError, EnvironmentFailure
from fedlightning.storage.checkpoint_reader import loop_state, read_checkpoint
from fedlightning.storage.client_store import ClientStore
from tests.toys import data, fit, loop_of, net, same, state, trainer

FEDPER_LIKE = Algorithm(train="full", share="body")
ON_DISK = {"personal_memory_mb": 0}


def kept(value):
    return {"head": torch.full((2,), float(value))}  # eight bytes


def values(states):
    return {client: states.get(client)["head"][0].item() for client in states}


def test_states_go_to_disk_once_they_take_too_much_memory(tmp_path):
    states = ClientStore(lambda: tmp_path / "personal", max_bytes=16)
    states.update({1: kept(1), 2: kept(2)})
    states.update({2: kept(20)})
    assert not (tmp_path / "personal").exists()
    states.update({3: kept(3)})
    assert states.state_dict()["clients"] == []
    assert values(states) == {1: 1, 2: 20, 3: 3}
    assert len(states) == 3


def test_a_round_on_disk_is_one_new_file_and_touches_no_other(tmp_path):
    states = ClientStore(lambda: tmp_path, max_bytes=0)
    states.update({1: kept(1), 2: kept(2)})
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    states.update({2: kept(20), 3: kept(3)})
    assert len(list(tmp_path.iterdir())) == 2
    assert all(path.read_bytes() == content for path, content in before.items())
    assert values(states) == {1: 1, 2: 20, 3: 3}


def test_a_checkpoint_lists_files_and_later_rounds_do_not_change_what_it_means(tmp_path):
    states, again = ClientStore(lambda: tmp_path, max_bytes=0), ClientStore()
    states.update({1: kept(1), 2: kept(2)})
    saved = states.state_dict()
    states.update({2: kept(20)})
    again.load_state_dict(saved)
    assert saved["tensors"] == {}
    assert values(again) == {1: 1, 2: 2}


def test_files_that_moved_with_their_checkpoint_are_found(tmp_path):
    states, again = ClientStore(lambda: tmp_path / "old", max_bytes=0), ClientStore()
    states.update({1: kept(1)})
    (tmp_path / "old").rename(tmp_path / "new")
    with pytest.raises(CheckpointError, match="old, which is missing"):
        again.load_state_dict(states.state_dict())
    again.load_state_dict(states.state_dict(), moved_to=tmp_path / "new")
    assert values(again) == {1: 1}


def test_a_checkpoint_from_before_there_were_files_is_read():
    states = ClientStore()
    states.load_state_dict({"clients": [4], "tensors": {"head": torch.ones(1, 2)}})
    assert values(states) == {4: 1}


def test_format_1_is_read(tmp_path):
    states = ClientStore()
    states.load_state_dict(
        {
            "clients": [4, 7],
            "tensors": {
                "head": torch.tensor([[1.0, 2.0], [3.0, 4.0]]),
                "steps": torch.tensor([5, 6]),
            },
            "files": {str(tmp_path / "x.safetensors"): [9]},
        }
    )
    assert set(states) == {4, 7, 9}
    assert states.files == {tmp_path / "x.safetensors"}
    assert same(states.get(4), {"head": torch.tensor([1.0, 2.0]), "steps": torch.tensor(5)})
    assert same(states.get(7), {"head": torch.tensor([3.0, 4.0]), "steps": torch.tensor(6)})


def test_a_newer_format_is_refused_by_its_number():
    with pytest.raises(CheckpointError, match="format 3 > supported 2; upgrade fedlightning"):
        ClientStore().load_state_dict({"format": 3, "clients": [], "tensors": {}})


MIXED = {
    3: {
        "head.weight": torch.arange(6.0).view(2, 3),
        "losses": torch.rand(5, generator=torch.Generator().manual_seed(1)),
        "steps": torch.tensor(7),
    },
    31: {
        "head.weight": torch.arange(4.0).view(2, 2),
        "losses": torch.ones(5, dtype=torch.float64),
        "optimizer/exp_avg": torch.zeros(0, 4),
    },
    4: {"head.weight": -torch.ones(2, 3), "counts": torch.tensor([1, 2**40])},
}


@pytest.mark.parametrize("max_bytes", [float("inf"), 0], ids=["in memory", "in files"])
def test_clients_keep_keys_shapes_and_dtypes_of_their_own(max_bytes, tmp_path):
    states = ClientStore(lambda: tmp_path / "personal", max_bytes)
    states.update(MIXED)
    content = {"state_dict": {}, "store": states.state_dict()}
    AtomicCheckpointIO().save_checkpoint(content, tmp_path / "last.ckpt")
    again = ClientStore()
    again.load_state_dict(AtomicCheckpointIO().load_checkpoint(tmp_path / "last.ckpt")["store"])
    assert bool(again.files) == (max_bytes == 0)
    for store in (states, again):
        assert set(store) == set(MIXED)
        for client, own in MIXED.items():
            assert store.get(client).keys() == own.keys()
            for key, value in own.items():
                found = store.get(client)[key]
                assert (found.dtype, found.shape) == (value.dtype, value.shape)
                assert torch.equal(found, value)


def test_what_clients_have_in_common_is_one_tensor_per_key():
    states = ClientStore()
    states.update({client: kept(client) for client in range(5)} | {5: MIXED[3], 6: MIXED[3]})
    stacks = states.state_dict()["tensors"]
    assert [clients for clients, _ in stacks["head"]] == [[0, 1, 2, 3, 4]]
    assert [clients for clients, _ in stacks["steps"]] == [[5, 6]]


def test_a_loaded_state_has_memory_of_its_own():
    states, again = ClientStore(), ClientStore()
    states.update({1: kept(1), 2: kept(2)})
    again.load_state_dict(states.state_dict())
    again.get(1)["head"].zero_()
    assert values(again) == {1: 0, 2: 2}
    assert values(states) == {1: 1, 2: 2}
    assert again.get(2)["head"].untyped_storage().nbytes() == 8


def test_a_run_is_the_same_with_states_in_memory_and_on_disk(tmp_path):
    kwargs = {"rounds": 3, "cohort": 3}
    memory, disk = net(dropout=0.3), net(dropout=0.3)
    one = fit(memory, FEDPER_LIKE, folder=tmp_path / "memory", **kwargs)
    other = fit(disk, FEDPER_LIKE, folder=tmp_path / "disk", federation=ON_DISK, **kwargs)
    assert same(state(memory), state(disk))
    assert not (Path(one.log_dir) / "personal").exists()
    assert len(list((Path(other.log_dir) / "personal").iterdir())) == 3
    for client in loop_of(one).personal:
        assert same(loop_of(one).personal.get(client), loop_of(other).personal.get(client))


def test_a_run_on_disk_resumes_even_where_its_folder_has_moved(tmp_path):
    kwargs = {"cohort": 3, "federation": ON_DISK}
    whole, resumed = net(lr_milestones=()), net(seed=9, lr_milestones=())
    fit(whole, FEDPER_LIKE, rounds=4, folder=tmp_path / "whole", **kwargs)
    fit(net(lr_milestones=()), FEDPER_LIKE, rounds=2, folder=tmp_path / "half", **kwargs)
    (tmp_path / "half").rename(tmp_path / "moved")
    saved = next((tmp_path / "moved").rglob("last.ckpt"))
    assert loop_state(read_checkpoint(saved))["extra"]["personal"]["files"]
    fit(resumed, FEDPER_LIKE, rounds=4, folder=tmp_path / "b", ckpt=saved, **kwargs)
    assert same(state(whole), state(resumed))


def test_what_clients_kept_on_disk_is_there_in_test(tmp_path):
    personal, fresh = PersonalizationCallback(), PersonalizationCallback()
    fit(net(), FEDPER_LIKE, folder=tmp_path, callbacks=[personal], federation=ON_DISK)
    trainer(FEDPER_LIKE, callbacks=[fresh]).test(
        net(seed=9), datamodule=data(), ckpt_path=next(tmp_path.rglob("last.ckpt")), verbose=False
    )
    assert [r.acc_before for r in fresh.records] == [r.acc_before for r in personal.records]


def test_a_stateless_algorithm_keeps_nothing(tmp_path):
    built = fit(net(), Algorithm(train="body", share="body"), folder=tmp_path, federation=ON_DISK)
    assert len(loop_of(built).personal) == 0
    assert not (Path(built.log_dir) / "personal").exists()


def test_a_negative_limit_is_refused():
    with pytest.raises(ConfigError, match=r"personal_memory_mb must be >= 0, got -1"):
        trainer(federation={"personal_memory_mb": -1})


def test_nothing_is_lost_where_a_file_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    states = ClientStore(lambda: tmp_path / "file" / "personal", max_bytes=0)
    with pytest.raises(EnvironmentFailure):
        states.update({3: {"w": torch.ones(2)}})
    assert torch.equal(states.get(3)["w"], torch.ones(2))
