"""What a data module holds after ``setup``, wherever the examples come from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fedlightning.core.batches import Split
from fedlightning.datamodules.examples import Examples

__all__ = ["ClientData"]


class ClientData(ABC):
    """Every client's examples, client by client.

    Every method must cost O(1) in the number of clients.

    Attributes:
        num_clients: Number of clients.
        num_classes: Number of classes; 0 for data without classes.
        rule: How the examples were divided or made, in words.
    """

    num_clients: int
    num_classes: int
    rule: str

    @abstractmethod
    def size(self, client: int, split: Split) -> int:
        """Return the number of a client's examples."""

    @abstractmethod
    def indices(self, client: int, split: Split) -> np.ndarray:
        """Return a client's indices into its pool, in its order, int64, shape (n,)."""

    @abstractmethod
    def pool(self, client: int, split: Split) -> Examples:
        """Return the examples that a client's indices refer to."""

    @abstractmethod
    def digest(self) -> str:
        """Return a SHA-256 in hexadecimal, by which a run resumed on other data is refused."""

    def fingerprint(self) -> str:
        """Return 16 hexadecimal digits that tell datasets apart."""
        return self.digest()[:16]

    def content_digest(self) -> str:
        """Return 16 digits of what more is known of the inputs, or nothing."""
        return ""

    @abstractmethod
    def summary(self) -> str:
        """Return a few readable lines."""

    @abstractmethod
    def write(self, folder: Path, dataset: str, names: Sequence[str] | None = None) -> None:
        """Write a description of bounded size into a folder.

        Args:
            folder: The run folder.
            dataset: Name of the data module.
            names: The clients' names, if they have any.

        Raises:
            EnvironmentFailure: A file cannot be written.
        """

    def table(self, split: Split, clients: int | None = None) -> np.ndarray:
        """Return the examples per client and class, int64, shape (clients, num_classes).

        The default has no columns: nothing is counted.

        Args:
            split: Which part of the clients' data.
            clients: How many clients, from client 0 on; None means all.
        """
        return np.zeros((self.num_clients if clients is None else clients, 0), np.int64)
