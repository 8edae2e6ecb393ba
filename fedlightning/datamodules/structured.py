"""Examples in memory whose inputs or labels are several tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedlightning.core.batches import Batch
from fedlightning.core.seeding import Key
from fedlightning.datamodules.examples import Examples, TensorExamples, label_array, sample_of
from fedlightning.errors import DataError, did_you_mean

__all__ = ["StructuredExamples", "is_structured"]


class StructuredExamples(Examples):
    """Examples whose inputs, labels or both are mappings, or tuples, of tensors of one length.

    A batch is ``(inputs, labels)`` with the same mappings.

    Args:
        inputs: A tensor or array of shape (n, ...), or a mapping or tuple of such.
        labels: Likewise; None for data without labels.
        label_key: Of labels in a mapping, the one that a partition sees.

    Raises:
        DataError: They differ in length, or are not numbers.

    Example:
        >>> inputs = {"image": torch.rand(3, 8, 8), "age": torch.tensor([30.0, 41.0, 28.0])}
        >>> pool = StructuredExamples(inputs, {"digit": [1, 0, 2], "even": [0, 1, 1]}, "digit")
        >>> pool.labels.tolist()
        [1, 0, 2]
        >>> rows, cpu = torch.tensor([2, 0]), torch.device("cpu")
        >>> x, y = next(pool.batches(rows, 5, drop_last=False, device=cpu, key=None))
        >>> x["age"].tolist(), y["even"].tolist()
        ([28.0, 30.0], [1, 0])
    """

    def __init__(self, inputs: Any, labels: Any = None, label_key: str | None = None) -> None:
        self.inputs = _tensors(inputs, "inputs")
        self._targets = None if labels is None else _tensors(labels, "labels")
        lengths = {len(leaf) for leaf in [*_leaves(self.inputs), *_leaves(self._targets)]}
        if len(lengths) != 1:
            raise DataError(f"inputs and labels differ in length: {sorted(lengths)}")
        (self._length,) = lengths
        self.labels = self._seen(label_key)

    def __len__(self) -> int:
        return self._length

    def batches(
        self,
        rows: Tensor,
        batch_size: int,
        *,
        drop_last: bool,
        device: torch.device,
        key: Key | None,
    ) -> Iterator[Batch]:
        """Cut the batches out of the pool; see :meth:`Examples.batches`."""
        stop = len(rows) - len(rows) % batch_size if drop_last else len(rows)
        for start in range(0, stop, batch_size):
            chosen = rows[start : start + batch_size]
            inputs = _selected(self.inputs, chosen, device)
            if self._targets is None:
                yield inputs
            else:
                yield inputs, _selected(self._targets, chosen, device)

    def item(self, index: int) -> Any:
        """Return one example: its inputs, or a pair of inputs and labels."""
        inputs = _at(self.inputs, index)
        return inputs if self._targets is None else (inputs, _at(self._targets, index))

    @classmethod
    def joined(
        cls, pools: Sequence[StructuredExamples], label_key: str | None = None
    ) -> StructuredExamples:
        """Return several pools' examples, one pool after the other.

        Raises:
            DataError: They have other inputs or labels than each other; it names the pool.
        """
        for at, pool in enumerate(pools):
            for what in ("inputs", "_targets"):
                mine, first = (_form(getattr(each, what)) for each in (pool, pools[0]))
                if mine != first:
                    raise DataError(
                        f"client {at}: {what.strip('_')} {mine}, but client 0 has {first}"
                    )
        targets = [pool._targets for pool in pools]
        labels = None if targets[0] is None else _joined(targets)
        return cls(_joined([pool.inputs for pool in pools]), labels, label_key)

    def content(self) -> bytes:
        """Return the bytes of evenly spaced examples."""
        leaves = [*_leaves(self.inputs), *_leaves(self._targets)]
        return b"".join(str(leaf.dtype).encode() + sample_of(leaf) for leaf in leaves)

    def fault(self, rows: np.ndarray) -> tuple[int, str] | None:
        """Return the first of ``rows`` with a non-finite number in its inputs or labels."""
        for leaf in [*_leaves(self.inputs), *_leaves(self._targets)]:
            if (found := TensorExamples(leaf).fault(rows)) is not None:
                return found
        return None

    def _seen(self, label_key: str | None) -> np.ndarray | None:
        targets = self._targets
        if targets is None or isinstance(targets, Tensor):
            return None if targets is None else label_array(targets)
        if label_key is None:
            return None
        if not isinstance(targets, Mapping) or label_key not in targets:
            names = list(targets) if isinstance(targets, Mapping) else []
            raise DataError(
                f"label_key={label_key!r} is not among the labels ({', '.join(names)})."
                f"{did_you_mean(label_key, names)}"
            )
        return label_array(targets[label_key])


def is_structured(values: Any) -> bool:
    """Whether inputs or labels are several, rather than one array.

    Example:
        >>> is_structured({"a": [1]}), is_structured(([1], [2])), is_structured([1, 2])
        (True, True, False)
    """
    return isinstance(values, (Mapping, tuple))


def _tensors(values: Any, name: str) -> Any:
    if isinstance(values, Mapping):
        return {key: _tensors(value, f"{name}[{key!r}]") for key, value in values.items()}
    if isinstance(values, tuple):
        return tuple(_tensors(value, f"{name}[{at}]") for at, value in enumerate(values))
    if name.startswith("labels"):
        return torch.from_numpy(label_array(values))
    tensor = TensorExamples(values).inputs
    return (
        tensor.to(torch.get_default_dtype())
        if isinstance(values, np.ndarray) and (tensor.dtype == torch.float64)
        else tensor
    )


def _form(values: Any) -> str:
    """Return names, dtypes and shapes, as text."""
    if values is None:
        return "none"
    if isinstance(values, Tensor):
        return f"{str(values.dtype).removeprefix('torch.')} of shape {('n', *values.shape[1:])}"
    if isinstance(values, Mapping):
        return "{" + ", ".join(f"{key}: {_form(values[key])}" for key in sorted(values)) + "}"
    return "(" + ", ".join(map(_form, values)) + ")"


def _joined(values: Sequence[Any]) -> Any:
    first = values[0]
    if isinstance(first, Tensor):
        return torch.cat(list(values))
    if isinstance(first, Mapping):
        return {key: _joined([each[key] for each in values]) for key in first}
    return tuple(_joined([each[at] for each in values]) for at in range(len(first)))


def _at(values: Any, index: int) -> Any:
    if isinstance(values, Tensor):
        return values[index]
    if isinstance(values, Mapping):
        return {key: _at(value, index) for key, value in values.items()}
    return tuple(_at(value, index) for value in values)


def _leaves(values: Any) -> list[Tensor]:
    if values is None:
        return []
    if isinstance(values, Tensor):
        return [values]
    parts = values.values() if isinstance(values, Mapping) else values
    return [leaf for part in parts for leaf in _leaves(part)]


def _selected(values: Any, rows: Tensor, device: torch.device) -> Any:
    if isinstance(values, Tensor):
        return values.index_select(0, rows).to(device)
    if isinstance(values, Mapping):
        return {key: _selected(value, rows, device) for key, value in values.items()}
    return tuple(_selected(value, rows, device) for value in values)
