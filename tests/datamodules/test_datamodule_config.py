import pytest
import yaml
from jsonargparse import ArgumentError, ArgumentParser
from torch.utils.data import Dataset

from fedlightning.datamodules import (
    CIFAR10,
    EMNIST,
    ClientDatasets,
    Digits,
    FederatedArrays,
    FederatedDataModule,
    GeneratedClients,
)

PAIRS = [[[[0.5, 1.0], [2.0, 3.0]], [0, 1]]]


def examples(client: int, split: str):
    return [[float(client)]], [0]


def collate(items):
    return [index for index, _ in items], [f"label {label}" for _, label in items]


class Pairs(Dataset):
    def __init__(self, size: int = 4):
        self.targets = [index % 2 for index in range(size)]

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        return float(index), self.targets[index]


def from_config(config):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(FederatedDataModule, "data")
    parsed = parser.parse_string(yaml.safe_dump({"data": config}))
    instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes
    return instantiate(parsed).data


def test_a_bare_class_name_and_a_partition_are_enough():
    config = {
        "class_path": "Digits",
        "init_args": {
            "num_clients": 5,
            "partition": {"class_path": "Shards", "init_args": {"per_client": 2}},
        },
    }
    data = from_config(config)
    assert isinstance(data, Digits)
    assert (data.num_clients, repr(data.partition)) == (5, "Shards(per_client=2)")


def test_a_dataset_can_be_named():
    pairs = {"class_path": f"{__name__}.Pairs", "init_args": {"size": 20}}
    data = from_config(
        {
            "class_path": "FederatedDataset",
            "init_args": {"num_clients": 4, "train": pairs, "test": pairs},
        }
    )
    data.setup()
    assert data.num_examples(3) == 5


@pytest.mark.parametrize(
    ("data_class", "options"),
    [
        (EMNIST, {"split": "letters", "root": "x", "batch_size": 3}),
        (CIFAR10, {"augment": False, "val_fraction": 0.1}),
        (FederatedArrays, {"train": ["x.npy", "y.npy"], "test": "t.npz", "drop_last": True}),
        (ClientDatasets, {"train": PAIRS, "test": PAIRS, "batch_size": 3, "val_fraction": 0.5}),
        (ClientDatasets, {"train": PAIRS, "test": PAIRS, "num_workers": 2, "drop_last": True}),
        (
            GeneratedClients,
            {"examples": f"{__name__}.examples", "num_clients": 9, "eval_clients": 2},
        ),
    ],
)
def test_own_and_inherited_options_are_known(data_class, options):
    data = from_config({"class_path": data_class.__name__, "init_args": options})
    assert isinstance(data, data_class)
    for name in options.keys() - {"train", "test", "examples"}:
        assert getattr(data, name) == options[name]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ClientDatasets", {"train": PAIRS, "test": PAIRS, "partition": "IID"}),
        ("ClientDatasets", {"train": PAIRS, "test": PAIRS, "num_clients": 1}),
        (
            "GeneratedClients",
            {"examples": f"{__name__}.examples", "num_clients": 9, "partition": "IID"},
        ),
    ],
)
def test_options_that_follow_from_the_data_are_unknown(name, options):
    with pytest.raises(ArgumentError, match=f"'{[*options][-1]}' is not accepted"):
        from_config({"class_path": name, "init_args": options})


def test_a_collate_function_can_be_named():
    pairs = {"class_path": f"{__name__}.Pairs"}
    options = {"train": pairs, "test": pairs, "collate": f"{__name__}.collate", "num_clients": 2}
    data = from_config({"class_path": "FederatedDataset", "init_args": options})
    data.setup()
    ((_, labels),) = data.batches(0, "test")
    assert set(labels) <= {"label 0", "label 1"}
