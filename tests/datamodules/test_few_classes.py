"""Clients with few classes: disjoint support and queries, newcomers with images of their own."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedlightning import FedAvg
from fedlightning.datamodules import (
    ClientDatasets,
    Digits,
    FewClasses,
    GeneratedClients,
)
from fedlightning.errors import ConfigError, DataError, FederationError
from fedlightning.models import MLP
from tests.toys import fit, net, state

SETTINGS = {"num_clients": 15, "held_out_clients": 5, "classes": 3, "num_train": 30,
            "num_support": 10, "num_test": 25, "seed": 0}  # fmt: skip


def made(**kwargs) -> FewClasses:
    data = FewClasses(Digits(seed=0), **{**SETTINGS, **kwargs})
    data.setup()
    return data


def rows(data, client, split) -> list[bytes]:
    return [row.tobytes() for x, _ in data.batches(client, split) for row in x.numpy()]


def test_sizes_and_classes_are_those_asked_for():
    data = made()
    for client in range(15):
        newcomer = data.is_held_out(client)
        assert data.num_examples(client) == (10 if newcomer else 30)
        assert data.num_examples(client, "test") == 25
        labels = {split: set(data.labels(client, split).tolist()) for split in ("train", "test")}
        assert len(labels["train"] | labels["test"]) == 3
    assert data.num_classes == 10


def test_no_image_is_in_two_splits_and_nobody_has_trained_on_a_newcomers():
    data, digits = made(), Digits(seed=0)
    digits.setup()
    pools = [{row.tobytes() for row in pool.inputs.numpy()} for pool in
             (digits.pooled.train, digits.pooled.test)]  # fmt: skip
    for client in range(15):
        support, queries = rows(data, client, "train"), rows(data, client, "test")
        assert len({*support, *queries}) == len(support) + len(queries)
        assert {*support, *queries} <= pools[data.is_held_out(client)]
    assert not pools[0] & pools[1]


@pytest.mark.parametrize("swapped", [0, 2, 3])
def test_labels_change_in_a_circle_the_same_in_support_and_queries(swapped):
    data, plain = made(swapped=swapped), made()
    for client in range(15):
        named = {}
        for split in ("train", "test"):
            pairs = zip(plain.labels(client, split), data.labels(client, split), strict=True)
            for before, after in pairs:
                assert named.setdefault(int(before), int(after)) == after
        assert sum(a != b for a, b in named.items()) <= swapped
        assert len(set(named.values())) == len(named)
    if swapped:
        moved = [np.any(plain.labels(c) != data.labels(c)) for c in range(15)]
        assert all(moved)


def test_seed_and_client_decide():
    one, again, other = made(), made(), made(seed=1)
    assert rows(one, 3, "train") == rows(again, 3, "train")
    assert rows(one, 3, "train") != rows(one, 4, "train")
    assert rows(one, 3, "train") != rows(other, 3, "train")


def test_it_trains_and_transforms_as_its_data_do():
    class Halved(Digits):
        def transform_batch(self, batch, training):
            return batch[0] / 2, batch[1]

    data = FewClasses(Halved(seed=0), **SETTINGS)
    fit(module := net(module=MLP, in_features=64, hidden=[8]), FedAvg(), cohort=3, datamodule=data)
    assert all(torch.isfinite(value).all() for value in state(module).values())
    assert max(float(x.max()) for x, _ in data.batches(0, "train")) <= 0.5
    assert not data.transforms_alike
    assert made().transforms_alike


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"swapped": 1}, "swapped must be 0, or at least 2"),
        ({"swapped": 4}, "swapped"),
        ({"classes": 11}, "classes=11, but the data has 10 classes"),
        ({"num_support": 0}, "num_support must be"),
    ],
)
def test_numbers_that_cannot_be_are_refused(settings, text):
    with pytest.raises(ConfigError, match=text):
        made(**settings)


def test_too_few_images_are_an_error_with_a_way_out():
    with pytest.raises(FederationError, match=r"are fewer than 30 and 5000; lower num_train"):
        made(num_test=5000)


def test_data_without_pools_is_refused():
    pairs = [(torch.rand(4, 2), torch.arange(4) % 2)]
    generated = GeneratedClients(lambda c, s: pairs[0], num_clients=3)
    with pytest.raises(DataError, match="GeneratedClients has no pools of labelled tensors"):
        FewClasses(generated, **SETTINGS).setup()
    unlabelled = ClientDatasets(train=[(pairs[0][0], None)], test=[(pairs[0][0], None)])
    with pytest.raises(DataError, match="ClientDatasets has no pools of labelled tensors"):
        FewClasses(unlabelled, **SETTINGS).setup()
