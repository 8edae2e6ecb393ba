"""Coloured images: the colour is a cue at home and misleads in the view; shapes are the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedlightning import FedAvg, PersonalizationCallback
from fedlightning.datamodules import ColoredDigits, ColoredImages
from fedlightning.errors import ConfigError
from fedlightning.models import MLP
from tests.toys import trainer


class Squares(ColoredImages):
    """8,000 images of one bright pixel, whose place is the class."""

    def load_images(self):
        classes = np.arange(8_000) % 10
        images = np.zeros((8_000, 2, 5), np.float32)
        images.reshape(8_000, 10)[np.arange(8_000), classes] = 1
        return images, classes


def made(**settings) -> Squares:
    data = Squares(**{"seed": 0, "disagreement": (0.1, 0.4), **settings})
    data.setup()
    return data


def examples(data, client, split):
    parts = list(data.batches(client, split))
    x, y = torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])
    colours = (x[:, 1].flatten(1).sum(dim=1) > 0).long()
    return x.sum(dim=1).flatten(1).argmax(dim=1), colours, y, x


@pytest.mark.parametrize("client", [0, 1])
def test_how_often_colours_and_labels_are_wrong(client):
    data = made()
    for split, share in (("train", (0.1, 0.4)[client]), ("test", (0.1, 0.4)[client]), ("ood", 0.9)):
        classes, colours, y, x = examples(data, client, split)
        assert float((colours != y).float().mean()) == pytest.approx(share, abs=0.05)
        assert float(((classes >= 5).long() != y).float().mean()) == pytest.approx(0.25, abs=0.05)
        assert (x.flatten(1).sum(dim=1) == 1).all(), "each image is in one channel"


def test_the_view_differs_from_the_test_data_by_colours_alone():
    data = made()
    classes, colours, y, _ = examples(data, 0, "test")
    other_classes, other_colours, other_y, _ = examples(data, 0, "ood")
    assert torch.equal(classes, other_classes)
    assert torch.equal(y, other_y)
    assert float((colours != other_colours).float().mean()) > 0.5


def test_clients_share_no_image_and_training_shares_none_with_tests():
    class Numbered(Squares):
        def load_images(self):
            return np.arange(1, 401, dtype=np.float32).reshape(400, 1, 1), np.arange(400) % 10

    data = Numbered(disagreement=(0.1, 0.2), seed=3)
    data.setup()
    numbers = [
        x.sum(dim=(1, 2, 3)).int().tolist()
        for client in (0, 1)
        for split in ("train", "test")
        for x, _ in data.batches(client, split)
    ]
    flat = [number for batch in numbers for number in batch]
    assert sorted(flat) == list(range(1, 401))


def test_flipped_classes_are_each_clients_own():
    data = made(flipped_classes=2, label_noise=0.0, disagreement=(0.1,) * 4)
    flipped = []
    for client in range(4):
        classes, _, y, _ = examples(data, client, "train")
        wrong = {c for c in range(10) if (y[classes == c] != int(c >= 5)).all()}
        right = {c for c in range(10) if (y[classes == c] == int(c >= 5)).all()}
        assert len(wrong) == 2
        assert len(right) == 8
        flipped.append(frozenset(wrong))
        test_classes, _, test_y, _ = examples(data, client, "ood")
        assert all((test_y[test_classes == c] != int(c >= 5)).all() for c in wrong)
    assert len(set(flipped)) > 1


def test_the_seed_decides_and_nothing_else():
    same, other = made(seed=1), made(seed=2)
    first = made(seed=1)
    _ = examples(first, 1, "ood")  # the order of asking does not matter
    for split in ("train", "ood"):
        assert torch.equal(examples(first, 0, split)[3], examples(same, 0, split)[3])
    assert not torch.equal(examples(same, 0, "train")[3], examples(other, 0, "train")[3])
    assert same.partition_digest() != other.partition_digest()


def test_a_run_has_the_view_in_its_metrics():
    data = ColoredDigits(batch_size=100, seed=0)
    callback = PersonalizationCallback(epochs=0)
    built = trainer(FedAvg(), rounds=8, callbacks=[callback])
    built.fit(MLP(in_features=128, hidden=[32], num_classes=2), datamodule=data)
    metrics = built.callback_metrics
    assert float(metrics["global/acc"]) > 0.7
    assert float(metrics["ood/global/acc"]) < 0.3
    assert {each.view.name for each in callback.views} == {"", "ood"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"disagreement": ()}, "one share per client, got none"),
        ({"disagreement": (0.1, 1.5)}, r"disagreement must be in \[0, 1\], got 1.5"),
        ({"label_noise": 1.0}, r"label_noise must be in \[0, 1\)"),
        ({"num_clients": 3}, "num_clients follows from disagreement"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        ColoredDigits(**settings)


def test_more_flips_than_classes_are_refused():
    with pytest.raises(
        ConfigError, match="flipped_classes must be an integer >= 0 and <= 10, got 11"
    ):
        made(flipped_classes=11)
