"""Clients that call some classes otherwise: which ones, everywhere alike, nothing else changed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedlightning import FedAvg
from fedlightning.datamodules import Digits, FederatedArrays, FederatedDataset, PermutedLabels
from fedlightning.errors import ConfigError, DataError
from tests.toys import Net, examples, fit, loop_of, net, same, state


def digits(seed: int | None = 0, **kwargs) -> Digits:
    return Digits(num_clients=12, seed=seed, val_fraction=0.2, **kwargs)


def ready(data, classes: int = 2) -> PermutedLabels:
    made = PermutedLabels(data, classes=classes)
    made.setup()
    return made


@pytest.mark.parametrize("classes", [0, 2, 3, 10])
def test_so_many_classes_change_places_at_every_client_in_all_its_splits(classes):
    made, plain = ready(digits(), classes), digits()
    plain.setup()
    for client in range(12):
        named = made.permutation(client)
        assert sorted(named) == list(range(10))
        assert (named != np.arange(10)).sum() == classes
        for split in ("train", "val", "test"):
            assert np.array_equal(made.indices(client, split), plain.indices(client, split))
            assert np.array_equal(made.labels(client, split), named[plain.labels(client, split)])
            ours, theirs = (next(d.batches(client, split))[0] for d in (made, plain))
            assert torch.equal(ours, theirs)


def test_clients_disagree_and_the_seed_decides():
    made, again, other = ready(digits()), ready(digits()), ready(digits(seed=1))
    found = {tuple(made.permutation(client)) for client in range(12)}
    assert len(found) > 6
    assert all(np.array_equal(made.permutation(c), again.permutation(c)) for c in range(12))
    assert any(not np.array_equal(made.permutation(c), other.permutation(c)) for c in range(12))
    assert made.dataset_fingerprint() != other.dataset_fingerprint()


def test_settings_are_those_of_the_data():
    data = digits(batch_size=7, eval_batch_size=9, drop_last=True, held_out_clients=3)
    made = ready(data)
    assert (made.num_clients, made.batch_size, made.eval_batch_size) == (12, 7, 9)
    assert made.drop_last
    assert made.held_out_ids.tolist() == data.held_out_ids.tolist()
    assert made.num_classes == 10
    assert made.fixed_examples
    assert made.partition_table().sum() == data.partition_table().sum()


def test_it_is_any_data_modules_and_trains():
    x, y = examples(40, seed=0)

    class Halved(FederatedArrays):
        def transform_batch(self, batch, training):
            return batch[0] / 2, batch[1]

    made = PermutedLabels(Halved((x, y), (x, y), num_clients=4, batch_size=5, seed=0), classes=3)
    loop_of(fit(module := net(), FedAvg(), datamodule=made))
    assert not same(state(module), state(net(module=Net)))
    rows = made.indices(0, "test")
    assert torch.equal(next(made.batches(0, "test"))[0], x[rows] / 2)
    assert not made.transforms_alike


@pytest.mark.parametrize("classes", [1, -2, 2.5])
def test_numbers_that_cannot_be_are_refused(classes):
    with pytest.raises(ConfigError, match="classes must be"):
        PermutedLabels(digits(), classes=classes)


def test_more_classes_than_there_are_are_refused():
    with pytest.raises(ConfigError, match="classes=11, but the data has 10 classes"):
        ready(digits(), 11)


def test_examples_that_are_read_one_by_one_are_refused():
    x, y = examples(40, seed=0)
    pairs = torch.utils.data.TensorDataset(x, y)
    with pytest.raises(DataError, match="read one by one, so their labels cannot be changed"):
        ready(FederatedDataset(pairs, pairs, num_clients=4))
