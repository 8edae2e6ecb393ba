"""The Dirichlet partition: every class is divided over the clients in random proportions."""

from __future__ import annotations

import heapq

import numpy as np

from fedlightning.core.validation import check_integer, check_number
from fedlightning.datamodules.partitions.base import Assignment, Partition, by_owner
from fedlightning.errors import DataError

__all__ = ["Dirichlet"]

_DRAWS = 10
_LEAST = 10


class Dirichlet(Partition):
    """Every class is divided over the clients in proportions drawn from Dirichlet(``alpha``).

    A small ``alpha`` gives each class to few clients; with a large one every client has nearly the
    dataset's proportions. The test examples are divided in the proportions of the training
    examples, class by class.

    A draw that leaves a client with fewer than ``min_samples`` training examples is repeated. After
    ten draws the best one is kept and repaired: the largest clients give examples of their most
    frequent class to those that have too few. A client's indices are in ascending order.

    Args:
        alpha: Concentration, the same for every client; greater than 0.
        min_samples: The fewest training examples that a client may have. With 0 no draw is
            repeated, and a client without examples is an error. None means 10, except that a client
            without examples in the best of ten draws is an error: ``alpha`` is too small for a
            repair that would change its meaning.

    Raises:
        ConfigError: ``alpha`` is not a finite number > 0, or ``min_samples`` is not an integer
            >= 0.

    Example:
        >>> labels = np.repeat(np.arange(3), 100)
        >>> rng = np.random.default_rng(0)
        >>> parts = Dirichlet(alpha=0.5).assign(labels, labels[:0], 4, num_classes=3, rng=rng)
        >>> sum(len(part) for part in parts.train), min(len(part) for part in parts.train) >= 10
        (300, True)

    Reference:
        Hsu, Qi, Brown. Measuring the Effects of Non-Identical Data Distribution for Federated
        Visual Classification. 2019. https://arxiv.org/abs/1909.06335
    """

    def __init__(self, alpha: float, min_samples: int | None = None) -> None:
        self.alpha = float(check_number("alpha", alpha, above=0))
        if min_samples is not None:
            check_integer("min_samples", min_samples, at_least=0)
        self.min_samples = min_samples

    def assign(
        self,
        train_labels: np.ndarray,
        test_labels: np.ndarray,
        num_clients: int,
        num_classes: int,
        rng: np.random.Generator,
    ) -> Assignment:
        """Divide class by class; see :meth:`Partition.assign`."""
        least = _LEAST if self.min_samples is None else self.min_samples
        wanted = least * num_clients
        if wanted > len(train_labels):
            raise DataError(
                f"min_samples={least} x {num_clients} clients = {wanted} > "
                f"{len(train_labels)} samples; lower min_samples or num_clients"
            )
        available = np.bincount(train_labels, minlength=num_classes)
        fewest = -1
        for _ in range(_DRAWS):
            shares = _proportions(self.alpha, num_classes, num_clients, rng)
            divided = _divide(available, shares)
            if (smallest := int(divided.sum(axis=0).min())) >= fewest:
                fewest, counts, drawn = smallest, divided, shares
            if fewest >= least:
                break
        if self.min_samples is None or not least:
            _check_no_client_is_empty(counts)
        if fewest < least:
            _top_up(counts, least)
        share = np.where(available[:, None] > 0, counts / np.maximum(available, 1)[:, None], drawn)
        test_counts = _divide(np.bincount(test_labels, minlength=num_classes), share)
        return Assignment(
            train=by_owner(_owners(train_labels, counts, rng), num_clients),
            test=by_owner(_owners(test_labels, test_counts, rng), num_clients),
        )


def _proportions(
    alpha: float, num_classes: int, num_clients: int, rng: np.random.Generator
) -> np.ndarray:
    """Return each class's shares of the clients, shape (num_classes, num_clients)."""
    drawn = rng.dirichlet(np.full(num_clients, alpha), size=num_classes)
    lost = ~np.isfinite(drawn).all(axis=1) | (drawn.sum(axis=1) < 0.5)
    # Where floating point fails, use the distribution's limits: one client alone, or all equal.
    if alpha < 1:
        alone = rng.integers(num_clients, size=lost.sum())
        drawn[lost] = np.arange(num_clients) == alone[:, None]
    else:
        drawn[lost] = 1 / num_clients
    return drawn


def _divide(available: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Return the examples per class and client; the rows sum to ``available``."""
    edges = np.rint(np.cumsum(share, axis=1) * available[:, None]).astype(np.int64)
    edges[:, -1] = available
    return np.diff(edges, axis=1, prepend=0)


def _top_up(counts: np.ndarray, min_samples: int) -> None:
    """Move examples from the largest clients, in place, until every client has ``min_samples``."""
    sizes = counts.sum(axis=0)
    donors = [(-int(size), client) for client, size in enumerate(sizes) if size > min_samples]
    heapq.heapify(donors)
    for needy in np.flatnonzero(sizes < min_samples):
        missing = min_samples - int(sizes[needy])
        while missing:
            size, donor = heapq.heappop(donors)
            label = counts[:, donor].argmax()
            moved = min(missing, -size - min_samples, int(counts[label, donor]))
            counts[label, donor] -= moved
            counts[label, needy] += moved
            missing -= moved
            if -size - moved > min_samples:
                heapq.heappush(donors, (size + moved, donor))


def _check_no_client_is_empty(counts: np.ndarray) -> None:
    empty = np.flatnonzero(counts.sum(axis=0) == 0)
    if empty.size:
        raise DataError(
            f"client {empty[0]} has 0 samples; raise alpha or min_samples: with one of 1 or more "
            "the largest clients give examples to those that have too few"
        )


def _owners(labels: np.ndarray, counts: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the owner of each example: a random choice with these counts by class and client."""
    owner = np.empty(len(labels), np.int64)
    shuffled = rng.permutation(len(labels))
    order = shuffled[np.argsort(labels[shuffled], kind="stable")]
    clients = np.tile(np.arange(counts.shape[1]), counts.shape[0])
    owner[order] = np.repeat(clients, counts.ravel())
    return owner
