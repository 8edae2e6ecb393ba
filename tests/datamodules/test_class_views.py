"""Views for clients with few classes: their own, the others', half of each."""

from __future__ import annotations

import numpy as np
import pytest

from fedlightning import FedAvg, PersonalizationCallback
from fedlightning.datamodules import (
    IID,
    Classes,
    ClassViews,
    FederatedArrays,
    FederatedDataset,
    FewClassDigits,
)
from fedlightning.errors import ConfigError, FederationError
from fedlightning.models import MLP
from tests.toys import trainer


def digits(seed: int = 0, **settings) -> FewClassDigits:
    data = FewClassDigits(**{"num_clients": 10, "partition": Classes(3), "seed": seed, **settings})
    data.setup()
    return data


@pytest.mark.parametrize("client", [0, 4, 9])
def test_which_classes_the_views_have(client):
    data = digits()
    own = set(data.labels(client, "train"))
    assert len(own) == 3
    assert set(data.labels(client, "test")) <= own
    assert not set(data.labels(client, "ood")) & own
    assert len(set(data.labels(client, "ood"))) > 3
    mixed = np.isin(data.labels(client, "mixture"), list(own))
    assert mixed.mean() == 0.5
    assert data.num_examples(client, "ood") == data.num_examples(client, "test")
    assert data.num_examples(client, "mixture") == 2 * data.num_examples(client, "test")


def test_half_of_the_mixture_is_the_clients_own_test_data_and_half_is_the_view_of_others():
    data = digits()

    def images(split):
        return {bytes(image.numpy()) for x, _ in data.batches(3, split) for image in x}

    assert images("mixture") == images("test") | images("ood")
    assert not images("mixture") & images("train")


def test_the_seed_decides():
    assert np.array_equal(digits(1).labels(2, "ood"), digits(1).labels(2, "ood"))
    assert not np.array_equal(digits(1).labels(2, "ood"), digits(2).labels(2, "ood"))


def test_a_client_with_all_classes_has_no_others():
    data = digits(partition=IID(), num_clients=2)
    assert data.num_examples(0, "ood") == data.num_examples(0, "mixture") == 0


def test_it_mixes_into_other_data():
    class Arrays(ClassViews, FederatedArrays):
        pass

    x, y = np.random.default_rng(0).random((300, 4)), np.arange(300) % 6
    data = Arrays((x, y), (x[:60], y[:60]), num_clients=3, partition=Classes(2), seed=0)
    data.setup()
    assert not set(data.labels(0, "ood")) & set(data.labels(0, "train"))


def test_metrics_have_the_views():
    built = trainer(FedAvg(), rounds=1, callbacks=[PersonalizationCallback(epochs=0)])
    built.fit(MLP(in_features=64), datamodule=digits())
    assert {"ood/global/acc", "mixture/global/acc"} <= built.callback_metrics.keys()


def test_examples_that_are_not_tensors_are_refused():
    from torch import arange, rand
    from torch.utils.data import TensorDataset

    class Items(ClassViews, FederatedDataset):
        pass

    pairs = TensorDataset(rand(60, 4), arange(60) % 6)
    data = Items(pairs, pairs, num_clients=3, partition=Classes(2), seed=0)
    data.setup()
    with pytest.raises((ConfigError, FederationError), match="need labelled examples in tensors"):
        data.num_examples(0, "ood")
