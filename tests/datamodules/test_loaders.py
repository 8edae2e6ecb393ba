import torch
from pytorch_lightning.utilities import move_data_to_device

from fedlightning.datamodules import ClientLoader, ClientTask


def test_loader_goes_through_clients_with_data_in_order():
    loader = ClientLoader(range(3), ("val",), lambda client, split: [2, 0, 1][client])
    assert list(loader) == [ClientTask(0, "val", 2), ClientTask(2, "val", 1)]
    assert len(loader) == 2


def test_loader_can_be_gone_through_again():
    loader = ClientLoader(range(2), ("train",), lambda client, split: 1)
    assert list(loader) == list(loader)


def test_lightning_leaves_a_task_alone():
    task = ClientTask(0, "train", 5)
    assert move_data_to_device(task, torch.device("cpu")) is task


def test_a_task_has_no_room_for_more():
    assert not hasattr(ClientTask(0, "train", 5), "__dict__")


def test_equal_tasks_are_one_key():
    assert {ClientTask(0, "train", 5): "a"}[ClientTask(0, "train", 5)] == "a"
    assert ClientTask(0, "train", 5) != ClientTask(0, "test", 5)
