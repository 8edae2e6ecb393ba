import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from fedlightning.core.seeding import Key
from fedlightning.datamodules import ClientDatasets, FederatedDataset, Shards
from fedlightning.errors import ConfigError, DataError, FederationError

SIZES = [3, 5, 2]


def pairs(sizes=SIZES, kind=torch.as_tensor):
    """Client c's inputs are 100c, 100c + 1, ..."""
    return [
        (kind(100.0 * c + np.arange(n)[:, None]), kind(np.arange(n) % 2))
        for c, n in enumerate(sizes)
    ]


def datasets(sizes=SIZES):
    return [TensorDataset(inputs, labels) for inputs, labels in pairs(sizes)]


def mixed():
    return [pairs()[0], datasets()[1], pairs()[2]]


def ready(train, **options):
    data = ClientDatasets(train, train, seed=0, **options)
    data.setup()
    return data


@pytest.mark.parametrize("train", [pairs(), pairs(kind=np.asarray), datasets(), mixed()])
def test_every_client_keeps_its_own(train):
    data = ready(train)
    assert data.num_clients == 3
    assert data.num_classes == 2
    for client, size in enumerate(SIZES):
        ((inputs, labels),) = data.batches(client, "test")
        assert inputs.flatten().tolist() == [100.0 * client + i for i in range(size)]
        assert labels.tolist() == [i % 2 for i in range(size)]


def test_validation_data_come_from_the_client_itself():
    data = ready(pairs([10, 20]), val_fraction=0.2)
    assert [data.num_examples(c, "val") for c in (0, 1)] == [2, 4]
    assert set(data.indices(1, "val")) <= set(range(10, 30))


def test_the_number_of_clients_is_known_before_setup():
    assert ClientDatasets(pairs(), pairs()).num_clients == 3


def test_a_label_outside_the_classes_is_named_by_the_clients_own_number():
    train = pairs()
    train[1][1][4] = 9
    with pytest.raises(DataError, match=r"client 1, sample 4: label 9 not in \[0, 2\)"):
        ready(train, num_classes=2)


def test_a_failing_item_is_named_by_the_clients_own_number():
    class Broken(Dataset):
        targets = (0, 1, 0)

        def __len__(self):
            return 3

        def __getitem__(self, index):
            if index == 2:
                raise KeyError("gone")
            return torch.zeros(1), 0

    data = ready([Broken(), Broken()])
    with pytest.raises(FederationError, match=r"client 1, sample 2: KeyError: 'gone'"):
        list(data.batches(1, "train", key=Key(0, "fit")))


def test_a_client_may_have_no_test_data():
    data = ClientDatasets(pairs(), pairs([3, 0, 2]), seed=0)
    with pytest.warns(UserWarning, match="1 of 3 clients have no test examples"):
        data.setup()
    assert [task.client for task in data.test_dataloader()] == [0, 2]


def test_a_client_without_training_data_is_refused():
    with pytest.raises(DataError, match="client 1 has 0 samples"):
        ready(pairs([3, 0, 2]))


@pytest.mark.parametrize(("train", "test"), [([], []), (pairs(), pairs()[:2])])
def test_train_and_test_need_the_same_clients(train, test):
    with pytest.raises(ConfigError, match="one dataset per client"):
        ClientDatasets(train, test)


def test_inputs_of_another_shape_are_refused():
    train = [*pairs(), (torch.zeros(4, 7), torch.zeros(4).long())]
    with pytest.raises(
        DataError, match=r"client 3: inputs of shape \(7,\), but client 0 has \(1,\)"
    ):
        ready(train)


def test_labels_on_some_clients_only_are_refused():
    with pytest.raises(DataError, match="client 1 and client 0: one has labels"):
        ready([pairs()[0], (torch.zeros(4, 1), None)])


def test_a_stream_is_refused():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(())

    with pytest.raises(DataError, match="client 1: Stream is neither"):
        ready([pairs()[0], Stream()])


def test_one_dataset_is_divided_by_its_labels():
    whole = TensorDataset(torch.arange(40.0)[:, None], torch.arange(40) % 4)
    data = FederatedDataset(whole, whole, num_clients=4, partition=Shards(1), seed=0)
    data.setup()
    assert (data.partition_table() > 0).sum(axis=1).tolist() == [1] * 4
