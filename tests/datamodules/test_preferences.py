"""Preferences: how often items are met, what clients prefer, what a model sees."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from fedlightning.datamodules import DigitPreferences, ZipfPreferences
from fedlightning.errors import ConfigError


def made(kind=ZipfPreferences, **kwargs):
    data = kind(**{"num_clients": 4, "seed": 0, **kwargs})
    data.setup()
    return data


def whole(data, client, split):
    batches = list(data.batches(client, split))
    return tuple(torch.cat([batch[i] for batch in batches]) for i in (0, 1))


def test_items_are_met_with_zipfs_frequencies_in_training_and_alike_in_test():
    data = made(comparisons=20_000, test_comparisons=20_000, num_items=5, exponent=1.0)
    want = np.array([1, 1 / 2, 1 / 3, 1 / 4, 1 / 5])
    want /= want.sum()
    # the first of a pair and, among the others, the second, in either order
    second = [sum(want[a] * want[b] / (1 - want[a]) for a in range(5) if a != b) for b in range(5)]
    pairs, _ = whole(data, 0, "train")
    assert pairs.shape == (20_000, 2)
    assert (pairs[:, 0] != pairs[:, 1]).all()
    for column in pairs.T:
        found = np.bincount(column, minlength=5) / 20_000
        assert np.abs(found - (want + second) / 2).max() < 0.02
    pairs, _ = whole(data, 0, "test")
    assert np.abs(np.bincount(pairs.flatten(), minlength=5) / 40_000 - 0.2).max() < 0.02


def test_labels_are_drawn_in_training_and_probabilities_in_test():
    data = made(comparisons=20_000, test_comparisons=500, num_items=3, exponent=0.0)
    r = data.rewards()
    pairs, labels = whole(data, 1, "train")
    assert labels.dtype == torch.float32
    assert set(labels.tolist()) == {0.0, 1.0}
    for a, b in ((0, 1), (1, 2), (2, 0)):
        own = labels[(pairs[:, 0] == a) & (pairs[:, 1] == b)]
        assert own.mean().item() == pytest.approx(1 / (1 + np.exp(r[b] - r[a])), abs=0.03)
    pairs, labels = whole(data, 1, "test")
    gaps = torch.from_numpy(r)[pairs]
    assert torch.allclose(labels, (gaps[:, 0] - gaps[:, 1]).sigmoid().float())


def test_seed_and_client_decide_and_annotators_may_disagree():
    data, again, other = made(), made(), made(seed=1)
    for split in ("train", "test"):
        both = zip(whole(data, 2, split), whole(again, 2, split), strict=True)
        assert all(torch.equal(one, same) for one, same in both)
        assert not torch.equal(whole(data, 2, split)[0], whole(data, 1, split)[0])
        assert not torch.equal(whole(data, 2, split)[0], whole(other, 2, split)[0])
    assert np.array_equal(data.rewards(), data.rewards(client=3))
    split_minds = made(disagreement=0.5)
    assert np.array_equal(split_minds.rewards(), data.rewards())
    difference = np.concatenate([split_minds.rewards(c) - data.rewards() for c in range(200)])
    assert difference.std() == pytest.approx(0.5, abs=0.05)


def test_digits_are_shown_as_images_that_training_and_test_do_not_share():
    data = made(DigitPreferences, comparisons=300, test_comparisons=300)
    digits = load_digits()
    known = {(image / 16).astype(np.float32).tobytes(): int(label)
             for image, label in zip(digits.images, digits.target, strict=True)}  # fmt: skip
    seen = {}
    for split in ("train", "test"):
        images, labels = whole(data, 0, split)
        assert images.shape == (300, 2, 1, 8, 8)
        rows = images.flatten(0, 1).numpy()
        seen[split] = {row.tobytes() for row in rows}
        classes = torch.tensor([known[row.tobytes()] for row in rows]).view(-1, 2)
        if split == "test":
            gaps = torch.from_numpy(data.rewards())[classes]
            assert torch.allclose(labels, (gaps[:, 0] - gaps[:, 1]).sigmoid().float())
    assert not seen["train"] & seen["test"]


@pytest.mark.parametrize("settings", [
    {"comparisons": 0}, {"num_items": 1}, {"exponent": -1}, {"spread": -1}, {"disagreement": -0.1},
    {"test_comparisons": -1},
])  # fmt: skip
def test_numbers_out_of_range_are_refused(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        ZipfPreferences(**settings)
