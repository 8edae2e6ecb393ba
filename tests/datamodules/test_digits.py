import numpy as np
import pytest
import torch

from fedlightning.datamodules import Digits, Shards
from fedlightning.errors import ConfigError


def digits(**options):
    data = Digits(**{"num_clients": 20, "seed": 0, **options})
    data.setup()
    return data


def test_images_reach_from_zero_to_one_exactly():
    images = digits().pooled.train.inputs
    assert images.shape[1:] == (1, 8, 8)
    assert images.dtype == torch.float32
    assert (float(images.min()), float(images.max())) == (0.0, 1.0)
    assert torch.equal(images * 16, (images * 16).round())


def test_every_class_is_split_in_the_same_proportion():
    data = digits()
    train, test = data.partition_table().sum(axis=0), data.partition_table("test").sum(axis=0)
    assert (train + test).sum() == 1797
    assert np.abs(test / (train + test) - 0.25).max() < 0.005


def test_the_seed_decides_what_is_tested_on():
    images = [digits(seed=seed).pooled.test.inputs for seed in (0, 0, 1)]
    assert torch.equal(images[0], images[1])
    assert not torch.equal(images[0], images[2])


def test_it_divides_into_shards():
    assert (digits(partition=Shards(2)).partition_table() > 0).sum(axis=1).max() == 2


@pytest.mark.parametrize("fraction", [0, 1, -0.1, None])
def test_test_fraction_must_leave_both_sides_something(fraction):
    with pytest.raises(ConfigError, match=r"test_fraction must be in \(0, 1\)"):
        Digits(test_fraction=fraction)
