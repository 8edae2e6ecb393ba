import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from fedlightning import FedAvg, FederatedModule
from fedlightning.core.seeding import Key
from fedlightning.datamodules import ClientDatasets, FederatedDataset, GeneratedClients, Shards
from fedlightning.errors import ConfigError, DataError, FederationError
from tests.toys import fit

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


def sentences(n=6):
    """Return tokens of several lengths."""
    return [torch.arange(1 + i % 3) + 1 for i in range(n)]


def pad(items):
    tokens, labels = zip(*items, strict=True)
    return pad_sequence(list(tokens), batch_first=True), torch.tensor(labels)


class Sentences(Dataset):
    targets = (0, 1) * 3

    def __len__(self):
        return 6

    def __getitem__(self, index):
        return sentences()[index], self.targets[index]


@pytest.mark.parametrize("train", [Sentences(), (sentences(), [0, 1] * 3)])
def test_examples_of_several_lengths_are_padded_by_a_collate_function(train):
    data = ready([train, train], collate=pad)
    ((tokens, labels),) = data.batches(1, "test")
    assert tokens.tolist() == [[1, 0, 0], [1, 2, 0], [1, 2, 3]] * 2
    assert labels.tolist() == [0, 1] * 3


def test_a_divided_dataset_takes_a_collate_function_too():
    data = FederatedDataset(Sentences(), Sentences(), num_clients=2, collate=pad, seed=0)
    data.setup()
    ((tokens, _),) = data.batches(0, "test")
    assert (tokens[:, 0] == 1).all()


def test_items_that_make_no_batch_name_the_collate_function():
    data = ready([Sentences()])
    with pytest.raises(FederationError, match=r"client 0: RuntimeError: stack.* pass collate"):
        list(data.batches(0, "test"))


def test_arrays_of_several_lengths_name_the_collate_function():
    with pytest.raises(DataError, match=r"inputs differ in shape .*\(1,\) and \(2,\).*collate"):
        ready([(sentences(), [0, 1] * 3)])


@pytest.mark.parametrize(
    ("named", "error"),
    [
        ("train", "train is a mapping from names, so test must be one from the same names"),
        ("test", "test has the clients' names, train has none"),
    ],
)
def test_names_are_needed_of_both_or_neither(named, error):
    given = {"train": pairs(), "test": pairs()}
    given[named] = dict(zip(["charite", "mayo", "ucla"], pairs(), strict=True))
    with pytest.raises(ConfigError, match=error):
        ClientDatasets(**given)


@pytest.mark.parametrize("given", ["train.npz", 3, None])
def test_what_is_not_a_list_of_clients_is_refused(given):
    with pytest.raises(ConfigError, match="train must be a list with one dataset per client"):
        ClientDatasets(given, pairs())


@pytest.mark.parametrize("part", ["charite", {"x": np.zeros(3), "y": np.zeros(3)}, 3])
def test_what_is_not_a_clients_dataset_is_refused(part):
    with pytest.raises(DataError, match=r"client 1: .* is neither a map-style dataset nor a pair"):
        ready([datasets()[0], part])


@pytest.mark.parametrize("option", [{"num_clients": 3}, {"partition": Shards(1)}])
def test_what_follows_from_the_data_cannot_be_chosen(option):
    with pytest.raises(ConfigError, match=f"{next(iter(option))} follows from train"):
        ClientDatasets(pairs(), pairs(), **option)


SEEN = []


class Linear(FederatedModule):
    def __init__(self):
        super().__init__(lr=0.1)
        self.body, self.head = nn.Linear(1, 2), nn.Linear(2, 2)

    def forward(self, x):
        SEEN.append(x.dtype)  # not on the module: what a client leaves there is put back
        return super().forward(x)


def doors(kind):
    """Return every door to a federation, with inputs in float64."""
    whole = TensorDataset(*map(torch.as_tensor, pairs([9])[0]))
    return {
        "pairs": ClientDatasets(pairs(kind=kind), pairs(kind=kind)),
        "datasets": ClientDatasets(datasets(), datasets()),
        "whole": FederatedDataset(whole, whole, num_clients=2),
        "made": GeneratedClients(lambda client, split: pairs(kind=kind)[client], 3, num_classes=2),
    }


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
@pytest.mark.parametrize("door", ["pairs", "datasets", "whole", "made"])
@pytest.mark.parametrize("double", [False, True])
def test_float64_inputs_fit_the_module(door, kind, double):
    module = Linear().double() if double else Linear()
    data = doors(kind)[door]
    SEEN.clear()
    fit(module, FedAvg(), rounds=1, datamodule=data)
    assert set(SEEN) == {torch.float64 if double else torch.float32}


def test_without_a_module_float64_stays():
    ((inputs, _),) = ready(pairs()).batches(0, "test")
    assert inputs.dtype == torch.float64


def test_one_dataset_is_divided_by_its_labels():
    whole = TensorDataset(torch.arange(40.0)[:, None], torch.arange(40) % 4)
    data = FederatedDataset(whole, whole, num_clients=4, partition=Shards(1), seed=0)
    data.setup()
    assert (data.partition_table() > 0).sum(axis=1).tolist() == [1] * 4
