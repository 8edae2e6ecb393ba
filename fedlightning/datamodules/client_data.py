"""What a data module holds after ``setup``, wherever the examples come from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

import numpy as np

from fedlightning.core.batches import Split
from fedlightning.datamodules.examples import Examples

__all__ = ["ClientData"]


class ClientData(ABC):
    """Every client's examples, asked for client by client.

    Nothing here may cost more for a client because there are many others.

    Attributes:
        num_clients: Number of clients.
        num_classes: Number of classes; 0 where the data have none.
        rule: How the clients came by their examples, in words.
    """

    num_clients: int
    num_classes: int
    rule: str

    @abstractmethod
    def size(self, client: int, split: Split) -> int:
        """Return how many examples a client has."""

    @abstractmethod
    def indices(self, client: int, split: Split) -> np.ndarray:
        """Return which examples of its pool a client has, in its order, int64, shape (n,)."""

    @abstractmethod
    def pool(self, client: int, split: Split) -> Examples:
        """Return the examples that a client's indices count."""

    @abstractmethod
    def digest(self) -> str:
        """Return a SHA-256 in hexadecimal; a run resumed on other data is refused by it."""

    @abstractmethod
    def summary(self) -> str:
        """Return a few readable lines."""

    @abstractmethod
    def write(self, folder: Path, dataset: str) -> None:
        """Write what is to be known of the division into a folder, bounded in size.

        Args:
            folder: The run folder.
            dataset: Name of the data module.

        Raises:
            EnvironmentFailure: A file cannot be written.
        """

    def table(self, split: Split, clients: int | None = None) -> np.ndarray:
        """Return the examples by client and class, int64, shape (clients, num_classes).

        There are no columns where nobody has counted.

        Args:
            split: Which part of the clients' data.
            clients: How many clients, from client 0 on; None means all.
        """
        return np.zeros((self.num_clients if clients is None else clients, 0), np.int64)
