"""Fashion-MNIST as arrays, a part of it that the seed decides."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedlightning.datamodules import IID, FashionMNIST

__all__ = ["fashion_mnist"]

Images = NDArray[np.float32]
Labels = NDArray[np.int64]


def fashion_mnist(
    seed: int, num_train: int, num_test: int
) -> tuple[Images, Labels, Images, Labels]:
    """Return images (n, 28, 28) in 0..1 and their classes, to train on and to test on.

    Args:
        seed: Decides which images.
        num_train: How many to train on.
        num_test: How many to test on.
    """
    source = FashionMNIST(num_clients=1, partition=IID(), normalize=False, seed=seed)
    train, test = source.load()
    rng = np.random.default_rng([seed, 41])
    found: list[np.ndarray] = []
    for pool, number in ((train, num_train), (test, num_test)):
        rows = rng.permutation(len(pool))[:number]
        assert pool.labels is not None
        images = pool.inputs[rows].numpy().astype(np.float32)[:, 0] / 255
        found += [images, pool.labels[rows].astype(np.int64)]
    return found[0], found[1], found[2], found[3]
