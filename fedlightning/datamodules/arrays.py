"""Your own arrays as a federation's data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedlightning.core.validation import check_integer
from fedlightning.datamodules.base import FederatedDataModule
from fedlightning.datamodules.client_splits import ClientSplit, SplitWithin, split_of
from fedlightning.datamodules.dataset_examples import DatasetExamples, Pairs
from fedlightning.datamodules.datasets import owners_count
from fedlightning.datamodules.examples import Examples, TensorExamples
from fedlightning.datamodules.partitions.natural import NaturalIds
from fedlightning.datamodules.structured import StructuredExamples, is_structured
from fedlightning.errors import ConfigError, DataError

__all__ = ["FederatedArrays"]


class FederatedArrays(FederatedDataModule):
    """Arrays or tensors in memory, divided over clients; nothing is scaled.

    Inputs in float64, NumPy's default, become torch's default dtype; other dtypes are kept.

    Args:
        train: Training data ``(inputs, labels)``, each an array, a tensor, or the path of a
            ``.npy`` file; or the path of a ``.npz`` file that holds them as ``x`` and ``y``. Inputs
            have shape (n, ...), labels (n,): integers are classes, from 0 on; anything else, or
            None, needs a partition that ignores labels, such as ``IID()``. Both may be mappings or
            tuples of arrays: several inputs, several labels.
        test: Test data likewise; None takes a share of each client's, see ``split``.
        label_key: Of labels in a mapping, the one that the partition sees.
        collate: Makes a batch of a list of items; for inputs of several lengths, such as lists of
            token ids (:class:`~fedlightning.datamodules.Pad`).
        split: How each client's examples are divided where ``test`` is None; see
            :class:`FederatedDataset`.
        num_classes: Number of classes; None counts them.
        kwargs: ``num_clients``, ``batch_size``, ``partition``, ...: see
            :class:`FederatedDataModule`.

    Raises:
        ConfigError: ``train`` or ``test`` has another form, or ``num_classes`` is not an integer
            >= 1.

    Example:
        >>> inputs, labels = np.random.default_rng(0).random((60, 4)), np.arange(60) % 3
        >>> data = FederatedArrays((inputs, labels), (inputs, labels), num_clients=6, seed=0)
        >>> data.setup()
        >>> data.num_classes, data.num_examples(client=5)
        (3, 10)
    """

    def __init__(
        self,
        train: Any,
        test: Any = None,
        num_classes: int | None = None,
        label_key: str | None = None,
        collate: Callable[[list[Any]], Any] | None = None,
        split: ClientSplit | None = None,
        **kwargs: Any,
    ) -> None:
        partition = kwargs.get("partition")
        if isinstance(partition, NaturalIds):
            self.client_names = partition.names
            kwargs["num_clients"] = owners_count(self.client_names, kwargs)
        super().__init__(**kwargs)
        self._sources = [_pair("train", train), *([] if test is None else [_pair("test", test)])]
        self.label_key = label_key
        self.collate = collate
        self.client_split = split_of(test, split)
        if num_classes is not None:
            self.num_classes = check_integer("num_classes", num_classes, at_least=1)

    def load(self) -> tuple[Examples, Examples]:
        """Read the files that are given by path, and make tensors of all arrays."""
        pools = [self._examples(source) for source in self._sources]
        if len(pools) == 1:
            assert self.client_split is not None
            self.partition = SplitWithin(self.partition, self.client_split)
        return pools[0], pools[-1]

    def _examples(self, source: Any) -> Examples:
        if self.collate is not None and not isinstance(source, (str, Path)):
            return DatasetExamples(Pairs(source, as_items=True), collate=self.collate)
        if not isinstance(source, (str, Path)) and any(map(is_structured, source)):
            inputs, labels = source
            return StructuredExamples(inputs, labels, self.label_key)
        return _examples(source)


def _pair(name: str, given: Any) -> Any:
    if isinstance(given, (str, Path)) or (isinstance(given, (tuple, list)) and len(given) == 2):
        return given
    raise ConfigError(
        f"{name} must be a pair (inputs, labels) or the path of a .npz file, "
        f"got {type(given).__name__}"
    )


def _examples(source: Any) -> TensorExamples:
    if isinstance(source, (str, Path)):
        content = _read(source)
        if not isinstance(content, dict) or "x" not in content:
            raise DataError(f"{source} must be a .npz file with arrays named x and y")
        return TensorExamples(_single(content["x"]), content.get("y"))
    inputs, labels = (_read(part) if isinstance(part, (str, Path)) else part for part in source)
    return TensorExamples(_single(inputs), labels)


def _single(inputs: Any) -> Any:
    """Return float64 arrays, NumPy's default, in torch's default dtype; others unchanged."""
    if isinstance(inputs, torch.Tensor):
        return inputs
    try:
        array = np.asarray(inputs)
    except ValueError:  # of several lengths: whoever makes tensors of them says so
        return inputs
    if array.dtype != np.float64:
        return array
    return torch.from_numpy(array).to(torch.get_default_dtype())


def _read(path: str | Path) -> Any:
    """Return the array of a ``.npy`` file, or a dictionary with those of a ``.npz`` file."""
    try:
        with Path(path).open("rb") as file:
            content = np.load(file, allow_pickle=False)
            if isinstance(content, np.ndarray):
                return content
            return {name: content[name] for name in content.files}
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    except Exception as error:  # zip, header and dtype errors are of many types
        if "pickle" in str(error):
            raise DataError(
                f"{path} holds pickled objects, and pickle is refused: it can run any code. "
                f"Save arrays of numbers"
            ) from error
        raise DataError(f"{path} is corrupt: {error}") from error
