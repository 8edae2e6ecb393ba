"""Public examples: nobody's own, the same for everybody, in no client's training."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedlightning.core.batches import PUBLIC
from fedlightning.datamodules import CENTRAL, Classes, Digits, PublicShare
from fedlightning.errors import ConfigError, DataError


def shared(fraction: float = 0.1, seed: int = 0, **kwargs) -> PublicShare:
    digits = Digits(num_clients=10, eval_batch_size=999, partition=Classes(3), seed=seed, **kwargs)
    data = PublicShare(digits, fraction)
    data.setup()
    return data


def test_public_examples_are_a_share_and_no_clients_own():
    data = shared()
    ((inputs, labels),) = data.batches(CENTRAL, PUBLIC)
    before = [data.data.indices(client) for client in range(10)]
    after = [data.indices(client) for client in range(10)]
    given = [np.setdiff1d(b, a) for b, a in zip(before, after, strict=True)]
    taken = np.sort(np.concatenate(given))
    assert len(taken) == round(0.1 * sum(map(len, before))) == len(labels)
    assert all(np.isin(a, b).all() for a, b in zip(after, before, strict=True))
    assert sum(map(len, after)) + len(taken) == sum(map(len, before))
    pool = data.pooled.train
    assert torch.equal(inputs, pool.inputs[taken])
    assert np.array_equal(labels.numpy(), pool.labels[taken])


def test_test_and_validation_examples_stay():
    data = shared(val_fraction=0.2)
    for client in range(10):
        for split in ("val", "test"):
            assert np.array_equal(data.indices(client, split), data.data.indices(client, split))


def test_the_seed_decides():
    rows = [shared(seed=seed)._rows for seed in (0, 0, 1)]
    assert np.array_equal(rows[0], rows[1])
    assert not np.array_equal(rows[0], rows[2])


def test_what_cannot_be_is_refused():
    with pytest.raises(ConfigError, match=r"fraction must be in \(0, 1\), got 1"):
        PublicShare(Digits(), fraction=1)
    with pytest.raises(ConfigError, match=r"fraction=0.0001 of 1347 training examples is none"):
        shared(fraction=1e-4)
    with pytest.raises(DataError, match=r"client \d+ has no example left; lower fraction=0.99"):
        shared(fraction=0.99)
    with pytest.raises(ConfigError, match="no examples that belong to no client"):
        shared().num_examples(CENTRAL, "test")
