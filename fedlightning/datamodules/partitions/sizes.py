"""Partitions that decide how many examples each client has, not of which classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedlightning.core.validation import check_integer, check_number
from fedlightning.datamodules.partitions.base import Assignment, Partition, by_owner
from fedlightning.errors import ConfigError, DataError

__all__ = ["QuantitySkew", "Sizes"]


class Sizes(Partition):
    """Every client gets an exact number of random training examples, of any class.

    Test examples are divided in the same proportions; training examples that are left over belong
    to nobody.

    Args:
        per_client: The number of training examples: one for all clients, or one for each.

    Raises:
        ConfigError: A number is not an integer >= 1.

    Example:
        >>> parts = Sizes([3, 1]).assign(np.zeros(6), np.zeros(4), 2, 1, np.random.default_rng(0))
        >>> [len(part) for part in parts.train], [len(part) for part in parts.test]
        ([3, 1], [3, 1])
    """

    needs_labels = False

    def __init__(self, per_client: int | Sequence[int]) -> None:
        self.per_client: int | list[int]
        if isinstance(per_client, Sequence):
            self.per_client = [check_integer("per_client", n, at_least=1) for n in per_client]
        else:
            self.per_client = check_integer("per_client", per_client, at_least=1)

    def assign(
        self,
        train_labels: np.ndarray,
        test_labels: np.ndarray,
        num_clients: int,
        num_classes: int,
        rng: np.random.Generator,
    ) -> Assignment:
        """Deal the shuffled examples out; see :meth:`Partition.assign`."""
        given = self.per_client
        sizes = np.array([given] * num_clients if isinstance(given, int) else given, np.int64)
        if len(sizes) != num_clients:
            raise ConfigError(
                f"partition.per_client has {len(sizes)} sizes for num_clients={num_clients}"
            )
        if sizes.sum() > len(train_labels):
            raise DataError(
                f"per_client asks for {sizes.sum()} examples in all, the dataset has "
                f"{len(train_labels)}; lower per_client or num_clients"
            )
        return _dealt(sizes, len(train_labels), len(test_labels), rng)


class QuantitySkew(Partition):
    r"""Clients differ in how many examples they have, not in which classes.

    .. math:: q \sim \mathrm{Dir}(\alpha \mathbf{1}_N), \quad n_k \approx q_k n

    The smaller alpha, the more a few clients have nearly everything. Each example goes to a random
    client with these shares.

    Args:
        alpha: Concentration of the symmetric Dirichlet distribution of the shares.
        min_samples: The least number of training examples per client, which the larger ones give.

    Raises:
        ConfigError: ``alpha`` is not a positive number, or ``min_samples`` is not >= 1.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> parts = QuantitySkew(0.5).assign(np.zeros(90), np.zeros(9), 3, 1, rng)
        >>> sum(len(part) for part in parts.train), sum(len(part) for part in parts.test)
        (90, 9)

    Reference:
        Li, Diao, Chen, He. Federated Learning on Non-IID Data Silos: An Experimental Study. ICDE
        2022. https://arxiv.org/abs/2102.02079
    """

    needs_labels = False

    def __init__(self, alpha: float, min_samples: int = 1) -> None:
        self.alpha = float(check_number("alpha", alpha, above=0))
        self.min_samples = check_integer("min_samples", min_samples, at_least=1)

    def assign(
        self,
        train_labels: np.ndarray,
        test_labels: np.ndarray,
        num_clients: int,
        num_classes: int,
        rng: np.random.Generator,
    ) -> Assignment:
        """Draw the shares and deal the examples out; see :meth:`Partition.assign`."""
        total, least = len(train_labels), self.min_samples
        if least * num_clients > total:
            raise DataError(
                f"min_samples={least} x {num_clients} clients > {total} samples; lower min_samples "
                "or num_clients"
            )
        shares = rng.dirichlet(np.full(num_clients, self.alpha))
        if not np.isfinite(shares).all():  # of a tiny alpha: one client has everything
            shares = np.eye(num_clients)[rng.integers(num_clients)]
        sizes = rounded(shares, total - least * num_clients) + least
        return _dealt(sizes, total, len(test_labels), rng)


def rounded(shares: np.ndarray, total: int) -> np.ndarray:
    """Return whole numbers in proportion to shares that sum to ``total`` exactly.

    Example:
        >>> rounded(np.array([0.5, 0.25, 0.25]), 6).tolist()
        [3, 1, 2]
    """
    edges = np.rint(np.cumsum(shares) / shares.sum() * total).astype(np.int64)
    edges[-1] = total
    return np.diff(edges, prepend=0)


def _dealt(
    sizes: np.ndarray, num_train: int, num_test: int, rng: np.random.Generator
) -> Assignment:
    """Return random examples in these numbers, and test examples in proportion to them."""
    clients = len(sizes)
    owner = np.full(num_train, -1, np.int64)
    owner[rng.permutation(num_train)[: sizes.sum()]] = np.repeat(np.arange(clients), sizes)
    of_test = np.empty(num_test, np.int64)
    tested = rounded(sizes / sizes.sum(), num_test)
    of_test[rng.permutation(num_test)] = np.repeat(np.arange(clients), tested)
    return Assignment(train=by_owner(owner, clients), test=by_owner(of_test, clients))
