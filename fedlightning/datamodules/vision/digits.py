"""The digits that come with scikit-learn: real data that needs no file and no network."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedlightning.core.seeding import Key, default_seed
from fedlightning.core.validation import check_number
from fedlightning.datamodules.base import FederatedDataModule
from fedlightning.datamodules.examples import TensorExamples

__all__ = ["Digits"]


class Digits(FederatedDataModule):
    """1,797 handwritten digits, float32 images (1, 8, 8) in 0..1, 10 classes.

    Args:
        test_fraction: Share of each class's examples that becomes the test pool; the seed decides
            which ones.
        kwargs: ``num_clients``, ``batch_size``, ``partition``, ...: see
            :class:`FederatedDataModule`.

    Raises:
        ConfigError: ``test_fraction`` is not in (0, 1).

    Example:
        >>> data = Digits(num_clients=10, seed=0)
        >>> data.setup()
        >>> images, labels = next(data.batches(0, "test"))
        >>> images.shape, labels.shape
        (torch.Size([45, 1, 8, 8]), torch.Size([45]))

    Reference:
        Alpaydin, Kaynak. Optical Recognition of Handwritten Digits. UCI Machine Learning
        Repository, 1998. https://doi.org/10.24432/C50P49
    """

    num_classes = 10

    def __init__(self, test_fraction: float = 0.25, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.test_fraction = float(check_number("test_fraction", test_fraction, above=0, below=1))

    def load(self) -> tuple[TensorExamples, TensorExamples]:
        """Read the digits and split each class in two."""
        from sklearn.datasets import load_digits

        digits = load_digits()
        images = (digits.images / 16).astype(np.float32)[:, None]
        labels = digits.target.astype(np.int64)
        # A separate stream (round 2), apart from the partition's and the held-out examples'.
        rng = Key(default_seed(self.seed), "partition", round=2).numpy()
        in_test = np.zeros(len(labels), bool)
        for label in range(self.num_classes):
            members = rng.permutation(np.flatnonzero(labels == label))
            in_test[members[: round(self.test_fraction * len(members))]] = True
        return (
            TensorExamples(images[~in_test], labels[~in_test]),
            TensorExamples(images[in_test], labels[in_test]),
        )
