"""A test set that belongs to no client, measured beside the clients' own."""

from __future__ import annotations

from typing import Any

from fedlightning.core.batches import Batch, Split
from fedlightning.core.views import CENTRAL, EvaluationView
from fedlightning.datamodules.base import FederatedDataModule
from fedlightning.datamodules.client_data import ClientData
from fedlightning.datamodules.dataset_examples import DatasetExamples
from fedlightning.datamodules.derived import DerivedData
from fedlightning.datamodules.examples import Examples, TensorExamples
from fedlightning.datamodules.structured import StructuredExamples, is_structured

__all__ = ["CentralTest"]

_VIEW = "central"


class CentralTest(DerivedData):
    """Another data module, and a test set of nobody's: the view ``central``.

    In every validation the global model is measured on it, as it is on the clients' own test data;
    the metrics are ``central/global/acc``, and so on. Examples are transformed as those of the
    clients are in evaluation.

    Args:
        data: The clients' data.
        test: The test set: a pair ``(inputs, labels)`` of arrays or tensors, of which either may be
            several, a map-style dataset, or :class:`Examples`.

    Raises:
        ConfigError: ``data`` is not a data module of clients.
        DataError: ``test`` cannot be used.

    Example:
        >>> import torch
        >>> from fedlightning.datamodules import FederatedArrays
        >>> pairs = torch.rand(40, 4), torch.arange(40) % 2
        >>> data = CentralTest(FederatedArrays(pairs, num_clients=4, seed=0), pairs)
        >>> data.setup()
        >>> data.num_examples(CENTRAL, "central"), data.num_examples(0, "test")
        (40, 2)
        >>> [(view.name, view.num_clients) for view in data.evaluation_views()]
        [('', 4), ('central', 1)]
    """

    def __init__(self, data: FederatedDataModule, test: Any) -> None:
        super().__init__(data)
        self.test = test
        self.narrows_inputs = data.narrows_inputs  # type: ignore[misc]

    def load(self) -> ClientData:
        """Load and divide the clients' data."""
        self.data.setup()
        return self.data.client_data

    def evaluation_views(self) -> list[EvaluationView]:
        """Return the views of the other data module, and that of the test set."""
        return [*self.data.evaluation_views(), EvaluationView(_VIEW, (CENTRAL,), _VIEW)]

    def split_examples(self, client: int, split: Split) -> Any:
        """Return the test set, or what the other data module has."""
        if (client, split) != (CENTRAL, _VIEW):
            return self.data.split_examples(client, split)
        if isinstance(self.test, Examples):
            return self.test
        if isinstance(self.test, tuple) and len(self.test) == 2:
            several = any(map(is_structured, self.test))
            return StructuredExamples(*self.test) if several else TensorExamples(*self.test)
        return DatasetExamples(self.test)

    def transform_batch(self, batch: Batch, training: bool) -> Batch:
        """Transform a batch as ``data`` does."""
        return self.data.transform_batch(batch, training)

    @property
    def transforms_alike(self) -> bool:
        """Whether ``data`` transforms an example the same way every time."""
        return self.data.transforms_alike

    def sample_number(self, client: int, split: Split, index: int) -> int:
        """Return the number that ``data`` gives an example in messages."""
        return self.data.sample_number(client, split, index)
