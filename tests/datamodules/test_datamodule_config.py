import pytest
import yaml
from jsonargparse import ArgumentParser
from torch.utils.data import Dataset

from fedlightning.datamodules import CIFAR10, EMNIST, Digits, FederatedArrays, FederatedDataModule


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
    ],
)
def test_own_and_inherited_options_are_known(data_class, options):
    data = from_config({"class_path": data_class.__name__, "init_args": options})
    assert isinstance(data, data_class)
    for name in options.keys() - {"train", "test"}:
        assert getattr(data, name) == options[name]
