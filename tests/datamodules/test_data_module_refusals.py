import numpy as np
import pytest
import torch

from fedlightning.datamodules import Dirichlet, FederatedDataModule, Shards, TensorExamples
from fedlightning.errors import ConfigError, DataError


class Toy(FederatedDataModule):
    """120 + 40 examples of 4 classes; an input is its own index."""

    num_classes = 4
    num_train, num_test = 120, 40
    loads = 0

    def load(self):
        self.loads += 1
        pools = (np.arange(n) for n in (self.num_train, self.num_test))
        train, test = (TensorExamples(i[:, None].astype(np.float32), i % 4) for i in pools)
        return train, test


def toy(**options):
    data = Toy(**{"num_clients": 6, "batch_size": 8, "seed": 0, **options})
    data.setup()
    return data


def test_calls_before_setup_say_what_is_missing():
    with pytest.raises(ConfigError, match="Toy holds no data yet: call its setup"):
        Toy().num_examples(0)


def test_an_unknown_client_is_refused_at_once():
    with pytest.raises(ConfigError, match=r"client must be in \[0, 6\), got 6"):
        toy().batches(6, "train")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_clients": 0}, "num_clients must be an integer >= 1, got 0"),
        ({"num_clients": None}, r"num_clients must be an integer >= 1, got None \(null\)"),
        ({"batch_size": 0}, "batch_size must be an integer >= 1, got 0"),
        ({"batch_size": 2.5}, "batch_size must be an integer >= 1, got 2.5"),
        ({"eval_batch_size": -1}, "eval_batch_size must be an integer >= 1, got -1"),
        ({"val_fraction": 1.0}, r"val_fraction must be in \[0, 1\), got 1.0"),
        ({"val_fraction": float("nan")}, r"val_fraction must be in \[0, 1\), got nan"),
        ({"seed": -1}, "seed must be an integer >= 0, got -1"),
        ({"partition": Shards}, "partition must be an instance of Partition, got the class Shards"),
    ],
)
def test_an_argument_that_cannot_work_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        Toy(**options)


def test_a_client_without_a_whole_batch_is_refused():
    with pytest.raises(DataError, match=r"client 0: 0 batches \(20 < 64\)"):
        toy(batch_size=64, drop_last=True)


def test_clients_without_test_data_are_counted_in_a_warning():
    class Few(Toy):
        num_test = 4

    data = Few(num_clients=6, seed=0)
    with pytest.warns(UserWarning, match="2 of 6 clients have no test examples"):
        data.setup()
    assert [task.client for task in data.test_dataloader()] == [0, 1, 2, 3]
    assert list(data.batches(5, "test")) == []


@pytest.mark.parametrize(("label", "text"), [(7, "7"), (-100, "-100")])
@pytest.mark.parametrize("partition", [None, Shards(1), Dirichlet(0.5)])
def test_a_label_outside_the_classes_is_named_with_client_and_sample(label, text, partition):
    class Wrong(Toy):
        def load(self):
            train, test = super().load()
            train.labels[17] = label
            return train, test

    data = Wrong(num_clients=4, partition=partition, seed=0)
    with pytest.raises(DataError, match=rf"client \d, sample 17: label {text} not in \[0, 4\)"):
        data.setup()


def test_a_value_that_is_not_finite_is_named_with_client_and_sample():
    class Wrong(Toy):
        def load(self):
            train, test = super().load()
            test.inputs[3] = torch.nan
            return train, test

    with pytest.raises(DataError, match=r"client \d, test sample 3: non-finite"):
        Wrong(num_clients=4, seed=0).setup()


def test_pools_of_another_kind_are_refused():
    class Raw(Toy):
        def load(self):
            return torch.zeros(3), torch.zeros(3)

    with pytest.raises(ConfigError, match=r"Raw\.load\(\) returns for a pool must be an instance"):
        Raw().setup()
