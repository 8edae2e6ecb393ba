"""Splits that a data module adds to train, val and test, for evaluation views."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np

from fedlightning.core.batches import Split
from fedlightning.core.tracebacks import place_of
from fedlightning.core.views import CENTRAL
from fedlightning.datamodules.checks import fault_in
from fedlightning.datamodules.examples import Examples, TensorExamples
from fedlightning.errors import FederationError, FedLightningError

__all__ = ["OwnSplits", "owner"]

_KEPT = 64


class OwnSplits:
    """Examples that are made when they are asked for; those asked for last are kept.

    Args:
        make: Returns the examples of a client's split: :class:`Examples`, a pair of inputs and
            labels, or inputs alone.
        num_classes: Number of classes; 0 where the data has none.
        check: Whether labels and numbers are checked.
    """

    def __init__(
        self, make: Callable[[int, Split], Any], num_classes: int = 0, check: bool = True
    ) -> None:
        self._make = make
        self._num_classes = num_classes
        self._check = check
        self._sizes: dict[tuple[int, Split], int] = {}
        self._kept: OrderedDict[tuple[int, Split], Examples] = OrderedDict()

    def size(self, client: int, split: Split) -> int:
        """Return the number of examples."""
        if (client, split) not in self._sizes:
            self.examples(client, split)
        return self._sizes[client, split]

    def examples(self, client: int, split: Split) -> Examples:
        """Return the examples.

        Raises:
            DataError: An example cannot be used.
            FederationError: ``make`` raised.
        """
        pool = self._kept.pop((client, split), None)
        if pool is None:
            pool = self._checked(client, split)
        self._kept[client, split] = pool
        self._sizes[client, split] = len(pool)
        if len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
        return pool

    def _checked(self, client: int, split: Split) -> Examples:
        try:
            made = _pool(self._make(client, split))
        except FedLightningError:
            raise
        except Exception as error:
            raise FederationError(
                f"{owner(client)}: the examples of split {split!r} raised {type(error).__name__}: "
                f"{error}{place_of(error)}"
            ) from error
        fault = fault_in(made, np.arange(len(made)), split, self._num_classes)
        if self._check and fault is not None:
            raise fault.error(f"{owner(client)}, {split} sample {fault.row}: {fault.text}")
        return made


def _pool(made: Any) -> Examples:
    if isinstance(made, Examples):
        return made
    return TensorExamples(*made if isinstance(made, (tuple, list)) else (made,))


def owner(client: int) -> str:
    """Return how messages name whose examples they are.

    Example:
        >>> owner(3), owner(CENTRAL)
        ('client 3', 'central data')
    """
    return "central data" if client == CENTRAL else f"client {client}"
