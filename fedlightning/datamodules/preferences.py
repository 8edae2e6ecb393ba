"""Preferences: each client compares two items at a time, some items far more often than others."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedlightning.core.seeding import Key, default_seed
from fedlightning.core.validation import check_integer, check_number
from fedlightning.datamodules.client_data import ClientData
from fedlightning.datamodules.generated import GeneratedClients

__all__ = ["DigitPreferences", "ZipfPreferences"]


class ZipfPreferences(GeneratedClients):
    r"""Clients that compare the items of a bandit, met with Zipf's frequencies.

    An example is a pair of items :math:`(a, b)`, int64, shape (2,); batches have shape (n, 2). In
    training item :math:`i` is met with a frequency proportional to :math:`(i + 1)^{-s}`, and the
    label is 1 if the client prefers :math:`a`, which it does with probability
    :math:`\sigma(r_a - r_b)` (Bradley, Terry), else 0. In the test split all items are met alike,
    so that what was rarely seen counts as much, and the label is that probability.
    True rewards :math:`r` are normal with mean 0; a client's own differ from them by normal
    numbers of standard deviation ``disagreement``.

    Args:
        num_clients: Number of clients.
        comparisons: Training comparisons per client.
        test_comparisons: Held-out comparisons per client.
        num_items: Number of items.
        exponent: Zipf's exponent :math:`s`; 0 meets all items alike in training, too.
        spread: Standard deviation of the true rewards.
        disagreement: By how much clients differ from each other in their rewards.
        kwargs: ``batch_size``, ``seed``, ``held_out_clients``, ...: see
            :class:`FederatedDataModule`.

    Raises:
        ConfigError: A number is out of its range.

    Example:
        >>> data = ZipfPreferences(num_clients=3, comparisons=20, seed=0)
        >>> data.setup()
        >>> pairs, labels = next(data.batches(0, "train"))
        >>> pairs.shape, labels.dtype, sorted(set(labels.tolist()))
        (torch.Size([20, 2]), torch.float32, [0.0, 1.0])
    """

    def __init__(
        self,
        num_clients: int = 5,
        comparisons: int = 60,
        test_comparisons: int = 200,
        num_items: int = 10,
        exponent: float = 1.0,
        spread: float = 1.0,
        disagreement: float = 0.0,
        **kwargs: Any,
    ) -> None:
        check_integer("comparisons", comparisons, at_least=1)
        check_integer("test_comparisons", test_comparisons, at_least=0)
        super().__init__(
            self.compared,
            num_clients=num_clients,
            num_train=comparisons,
            num_test=test_comparisons,
            **kwargs,
        )
        self.num_items = check_integer("num_items", num_items, at_least=2)
        self.exponent = float(check_number("exponent", exponent, at_least=0))
        self.spread = float(check_number("spread", spread, at_least=0))
        self.disagreement = float(check_number("disagreement", disagreement, at_least=0))
        self.comparisons, self.test_comparisons = comparisons, test_comparisons

    def rewards(self, client: int | None = None) -> np.ndarray:
        """Return the true rewards of the items, or a client's own, float64, shape (num_items,).

        Args:
            client: Client id; None means those that clients differ from.
        """
        common: np.ndarray = self.spread * self._stream(0, 0).normal(size=self.num_items)
        if client is None or not self.disagreement:
            return common
        own = self._stream(1, client).normal(size=self.num_items)
        rewards: np.ndarray = common + self.disagreement * own
        return rewards

    def frequencies(self) -> np.ndarray:
        """Return how often each item is met in training, float64, shape (num_items,), sum 1."""
        weights = np.arange(1, self.num_items + 1) ** -self.exponent
        met: np.ndarray = weights / weights.sum()
        return met

    def compared(self, client: int, split: str) -> tuple[Any, np.ndarray]:
        """Return a client's pairs and labels; called once for each client and split."""
        rng = self._stream(2 if split == "train" else 3, client)
        pairs, preferred = self._drawn(client, split, rng)
        labels = preferred if split == "test" else rng.random(len(preferred)) < preferred
        return self.shown(pairs, split, rng), labels.astype(np.float32)

    def shown(self, pairs: np.ndarray, split: str, rng: np.random.Generator) -> Any:
        """Return what a model gets to see of pairs of items: here, their numbers.

        Args:
            pairs: Numbers of the items, int64, shape (n, 2).
            split: ``"train"`` or ``"test"``.
            rng: The client's random stream.
        """
        return pairs

    def _drawn(
        self, client: int, split: str, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return pairs of different items and the probability that the first one is preferred."""
        number = self.comparisons if split == "train" else self.test_comparisons
        scores = rng.exponential(size=(number, self.num_items))
        if split == "train":
            scores /= self.frequencies()
        pairs = rng.permuted(np.argsort(scores, axis=1)[:, :2], axis=1)
        rewards = self.rewards(client)
        gaps = rewards[pairs[:, 0]] - rewards[pairs[:, 1]]
        return pairs, 1 / (1 + np.exp(-gaps))

    def _stream(self, use: int, client: int) -> np.random.Generator:
        key = Key(default_seed(self.seed), "partition", round=4, client=client, epoch=use)
        return key.numpy()


class DigitPreferences(ZipfPreferences):
    """The same, with pictures: an item is a digit, shown as one of scikit-learn's images of it.

    An example is a pair of images, float32 in 0..1, shape (2, 1, 8, 8). Training and test images
    are different ones.

    Args:
        num_clients: Number of clients.
        comparisons: Training comparisons per client.
        test_comparisons: Held-out comparisons per client.
        kwargs: ``exponent``, ``spread``, ``disagreement``, ``batch_size``, ...: see
            :class:`ZipfPreferences`.

    Example:
        >>> data = DigitPreferences(num_clients=3, comparisons=20, seed=0)
        >>> data.setup()
        >>> next(data.batches(0, "test"))[0].shape
        torch.Size([128, 2, 1, 8, 8])
    """

    def __init__(
        self,
        num_clients: int = 5,
        comparisons: int = 60,
        test_comparisons: int = 200,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            num_clients=num_clients,
            comparisons=comparisons,
            test_comparisons=test_comparisons,
            num_items=10,
            **kwargs,
        )

    def load(self) -> ClientData:
        """Read the digits, and leave a quarter of each class's images for the test pairs."""
        from sklearn.datasets import load_digits

        digits = load_digits()
        images = (digits.images / 16).astype(np.float32)[:, None]
        order = self._stream(4, 0).permutation(len(images))
        self._images: dict[str, list[np.ndarray]] = {"train": [], "test": []}
        for digit in range(self.num_items):
            members = images[order[digits.target[order] == digit]]
            cut = len(members) // 4
            self._images["test"].append(members[:cut])
            self._images["train"].append(members[cut:])
        return super().load()

    def shown(self, pairs: np.ndarray, split: str, rng: np.random.Generator) -> Any:
        """Return a random image of each item, float32, shape (n, 2, 1, 8, 8)."""
        pools = self._images[split]
        chosen = [pools[item][rng.integers(len(pools[item]))] for item in pairs.ravel()]
        return np.stack(chosen).reshape(*pairs.shape, 1, 8, 8)
