"""Extended Dirichlet: a number of classes per client, and unequal shares of each of them."""

from __future__ import annotations

import numpy as np

from fedlightning.core.validation import check_integer, check_number
from fedlightning.datamodules.partitions.base import Assignment, Partition, by_owner
from fedlightning.datamodules.partitions.sizes import rounded
from fedlightning.errors import DataError

__all__ = ["ExtendedDirichlet"]


class ExtendedDirichlet(Partition):
    r"""Every client has ``per_client`` classes; a class is divided over the clients that have it.

    Classes are allotted so that each is held by as nearly the same number of clients as possible.
    The examples of class c go to its holders in the shares

    .. math:: q_c \sim \mathrm{Dir}(\alpha \mathbf{1}_{m_c}),

    with :math:`m_c` the number of holders; each has at least one. Test examples have the same
    holders and shares.

    Args:
        per_client: Number of different classes per client.
        alpha: Concentration; the smaller, the more unequal the shares.

    Raises:
        ConfigError: ``per_client`` is not an integer >= 1, or ``alpha`` is not positive.

    Example:
        >>> labels = np.arange(60) % 3
        >>> rng = np.random.default_rng(0)
        >>> parts = ExtendedDirichlet(2, alpha=1.0).assign(labels, labels[:6], 3, 3, rng)
        >>> [len(np.unique(labels[part])) for part in parts.train]
        [2, 2, 2]

    Reference:
        Li, Lyu. Convergence Analysis of Sequential Federated Learning on Heterogeneous Data.
        NeurIPS 2023. https://arxiv.org/abs/2311.03154
    """

    def __init__(self, per_client: int, alpha: float) -> None:
        self.per_client = check_integer("per_client", per_client, at_least=1)
        self.alpha = float(check_number("alpha", alpha, above=0))

    def assign(
        self,
        train_labels: np.ndarray,
        test_labels: np.ndarray,
        num_clients: int,
        num_classes: int,
        rng: np.random.Generator,
    ) -> Assignment:
        """Allot the classes, then divide each; see :meth:`Partition.assign`."""
        if self.per_client > num_classes:
            raise DataError(f"per_client={self.per_client} exceeds the {num_classes} classes")
        holders = self._holders(num_clients, num_classes, rng)
        train = np.full(len(train_labels), -1, np.int64)
        test = np.full(len(test_labels), -1, np.int64)
        for label, having in enumerate(holders):
            own = rng.permutation(np.flatnonzero(train_labels == label))
            if 0 < len(own) < len(having):
                raise DataError(
                    f"class {label} has {len(own)} examples for {len(having)} clients; lower "
                    "num_clients or per_client"
                )
            of_test = rng.permutation(np.flatnonzero(test_labels == label))
            if not len(having):
                continue
            shares = rng.dirichlet(np.full(len(having), self.alpha))
            if not np.isfinite(shares).all():
                shares = np.eye(len(having))[rng.integers(len(having))]
            counts = rounded(shares, len(own) - len(having)) + 1 if len(own) else having * 0
            train[own] = np.repeat(having, counts)
            test[of_test] = np.repeat(having, rounded(shares, len(of_test)))
        return Assignment(train=by_owner(train, num_clients), test=by_owner(test, num_clients))

    def _holders(
        self, num_clients: int, num_classes: int, rng: np.random.Generator
    ) -> list[np.ndarray]:
        """Return the clients that have each class."""
        having = np.zeros((num_clients, num_classes), bool)
        held = np.zeros(num_classes, np.int64)
        for client in rng.permutation(num_clients):
            # the least held classes, ties at random
            order = np.lexsort((rng.random(num_classes), held))[: self.per_client]
            having[client, order] = True
            held[order] += 1
        return [np.flatnonzero(having[:, label]) for label in range(num_classes)]
