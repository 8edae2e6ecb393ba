"""Texts with an owner, from a Hugging Face dataset, tokenized batch by batch."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedlightning.core.validation import Setting, check_integer
from fedlightning.datamodules.client_splits import text_columns
from fedlightning.datamodules.columns import as_written
from fedlightning.datamodules.datasets import FederatedDataset
from fedlightning.datamodules.partitions.natural import NaturalIds
from fedlightning.datamodules.targets import Labels, check_filled, class_names
from fedlightning.errors import ConfigError, DataError, EnvironmentFailure, did_you_mean

__all__ = ["FederatedText", "WordHashes"]

_FILES = (".csv", ".json", ".jsonl", ".parquet", ".txt")


class FederatedText(FederatedDataset):
    """Texts of a Hugging Face dataset or a file, divided over clients (extra ``hf``).

    A batch is ``({"input_ids": ..., "attention_mask": ...}, labels)``, or the inputs alone without
    labels, padded to its longest text.

    Args:
        dataset: A ``datasets.Dataset``; the name of one on the Hub; the path of a ``.csv``,
            ``.json``, ``.jsonl``, ``.parquet`` or ``.txt`` file, or of a folder that
            ``save_to_disk`` has written.
        text: The column with the text.
        label: The column with the class, as text or number, or with the target of a regression;
            None for texts alone, such as for a language model.
        client: The column with the owner of each text; None divides by ``partition``.
        test: Test data likewise; None takes a share of each client's, see ``split``.
        tokenizer: A tokenizer of ``transformers``, the name of one, or any function of a list of
            texts that returns ``input_ids`` and ``attention_mask``; None means
            :class:`WordHashes`, which needs no download.
        max_length: Tokens of a text beyond these are cut off.
        subset: Which part of a dataset on the Hub, such as a language.
        regression: Whether labels are targets of a regression, not classes; None decides by their
            values, and refuses more than 20 different whole numbers without names.
        kwargs: ``split``, ``batch_size``, ``val_fraction``, ...: see :class:`FederatedDataset`.

    Attributes:
        classes: The names of labels that are text, in the order of their numbers.

    Raises:
        ConfigError: A column does not exist, or it is not known what the labels are.
        DataError: The dataset cannot be read, or a row lacks its text or its label.
        EnvironmentFailure: ``datasets`` or ``transformers`` is not installed, or the tokenizer
            cannot be had.

    Example:
        >>> import datasets
        >>> rows = {"author": ["ann", "bob"], "note": ["good day", "bad"], "y": [1, 0]}
        >>> notes = datasets.Dataset.from_dict({name: each * 10 for name, each in rows.items()})
        >>> data = FederatedText(notes, "note", label="y", client="author", batch_size=4, seed=0)
        >>> data.setup()
        >>> data.client_names, [x["input_ids"].shape for x, y in data.batches(0, "test")]
        (('ann', 'bob'), [torch.Size([2, 2])])
    """

    def __init__(
        self,
        dataset: Any,
        text: str = "text",
        label: str | None = None,
        client: str | None = None,
        test: Any = None,
        tokenizer: Any = None,
        max_length: int = 128,
        subset: str | None = None,
        regression: bool | None = None,
        **kwargs: Any,
    ) -> None:
        self.max_length = check_integer("max_length", max_length, at_least=1)
        texts = text_columns(client, kwargs.get("split"))
        train = _loaded(dataset, subset, "train", text, texts)
        tested: Any = None if test is None else _loaded(test, subset, "test", text, texts)
        columns = {"text": text, "label": label, "client": client}
        wanted = {name: column for name, column in columns.items() if column is not None}
        for part, which in ((train, "dataset"), (tested, "test dataset")):
            for name, column in wanted.items() if part is not None else ():
                if column not in part.column_names:
                    raise ConfigError(
                        f"{name}={column!r} is not a column of the {which}."
                        f"{did_you_mean(column, part.column_names)} It has "
                        f"{', '.join(part.column_names)}."
                    )
        if client is not None:
            if kwargs.get("partition") is not None:
                raise ConfigError("partition follows from client; leave one of them out")
            kwargs["partition"] = NaturalIds(client)
        for part, what, given in ((train, "row", dataset), (tested, "test row", test)):
            if part is not None:
                file = str(given) if isinstance(given, (str, Path)) else ""
                if label is not None:
                    check_filled(what, label, _column(part, label), file)
                if part.data.column(text).null_count:
                    check_filled(what, text, _column(part, text), file, blank=False)
        self.classes: tuple[str, ...] = ()
        if label is not None:
            train, tested = self._labelled(label, train, tested, regression)
        self.tokenizer = _tokenizer(tokenizer)
        super().__init__(
            train,
            tested,
            label_key=label,
            input_key=text,
            collate=_Tokenized(self.tokenizer, self.max_length, label is not None),
            **kwargs,
        )

    def _labelled(self, label: str, train: Any, test: Any, regression: bool | None) -> Any:
        """Return the datasets with labels that are the numbers of classes, or targets."""
        values = _column(train, label)
        several = len(values) and isinstance(values[0], (list, np.ndarray))
        if several or (regression is None and hasattr(train.features[label], "names")):
            return train, test  # Hugging Face's own classes, or several labels
        known = class_names(label, values, regression)
        if known is not None and values.dtype.kind == "i":
            return train, test  # numbers of classes
        if known is not None and values.dtype.kind == "f":
            known = list(range(int(values.max()) + 1))
        elif known is not None:
            self.classes = tuple(map(str, known))
        labels = Labels(label, known)
        return [
            part and part.remove_columns(label).add_column(label, labels.of(_column(part, label)))
            for part in (train, test)
        ]


class WordHashes(Setting):
    """Numbers words by a hash: a tokenizer that needs no vocabulary and no download.

    Args:
        size: Number of tokens; 0 pads.

    Example:
        >>> WordHashes(100)(["to be", "or"], max_length=8)["attention_mask"].tolist()
        [[1, 1], [1, 0]]
    """

    def __init__(self, size: int = 1000) -> None:
        self.size = check_integer("size", size, at_least=2)

    def __call__(self, texts: Sequence[str], max_length: int, **options: Any) -> dict[str, Tensor]:
        """Return token ids and mask of texts, padded to the longest, int64."""
        rows = [
            [1 + zlib.crc32(word.encode()) % (self.size - 1) for word in text.lower().split()]
            for text in texts
        ]
        rows = [row[:max_length] or [1] for row in rows]
        longest = max(map(len, rows))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
        return {"input_ids": ids, "attention_mask": (ids > 0).long()}


class _Tokenized:
    """Makes a batch of texts, or of pairs of text and label."""

    def __init__(self, tokenizer: Any, max_length: int, labelled: bool) -> None:
        self._tokenizer = tokenizer
        self._max_length = max_length
        self._labelled = labelled

    def __call__(self, items: list[Any]) -> Any:
        texts = [item[0] if self._labelled else item for item in items]
        made = self._tokenizer(
            texts, max_length=self._max_length, truncation=True, padding=True, return_tensors="pt"
        )
        inputs = {name: made[name] for name in ("input_ids", "attention_mask")}
        if not self._labelled:
            return inputs
        return inputs, torch.tensor([item[1] for item in items])


def _column(dataset: Any, name: str) -> np.ndarray:
    """Return a column: numbers, or objects, with None where a row has nothing."""
    values = dataset.with_format(None)[name][:]
    plain: np.ndarray = np.array([*values, None], object)[:-1]
    numbers = all(isinstance(value, (int, float)) for value in values)
    return np.asarray(values) if numbers and len(values) else plain


def _loaded(
    given: Any, subset: str | None, part: str, text: str, as_texts: Mapping[str, bool]
) -> Any:
    try:
        import datasets
    except ImportError:
        raise EnvironmentFailure(
            "FederatedText needs datasets: pip install 'fedlightning[hf]'"
        ) from None
    if not isinstance(given, (str, Path)):
        if not hasattr(given, "column_names"):
            raise ConfigError(f"dataset must be one of Hugging Face, got {type(given).__name__}")
        return given
    path = Path(given)
    try:
        if path.suffix in _FILES:
            if not path.is_file():
                raise DataError(f"{path}: no such file")
            return datasets.Dataset(_table(path, text, as_texts))
        if path.is_dir():
            return datasets.load_from_disk(str(path))
        return datasets.load_dataset(str(given), subset, split=part)
    except DataError:
        raise
    except Exception as error:  # of the network, of formats, of permissions: of many types
        raise DataError(f"dataset={given}: {type(error).__name__}: {error}") from error


def _table(path: Path, text: str, as_texts: Mapping[str, bool]) -> Any:
    """Return a file's rows, read into memory; nothing is cached elsewhere."""
    import pyarrow as pa

    if path.suffix == ".csv":
        from pyarrow import csv

        types = dict.fromkeys({text, *as_texts}, pa.string())
        table = csv.read_csv(path, convert_options=csv.ConvertOptions(column_types=types))
        for name in as_texts.keys() & set(table.column_names):
            column = pa.array(as_written(table[name].to_pylist(), as_texts[name]), from_pandas=True)
            table = table.set_column(table.column_names.index(name), name, column)
        return table
    if path.suffix == ".parquet":
        from pyarrow import parquet

        return parquet.read_table(path)
    content = path.read_text(encoding="utf-8")
    if path.suffix == ".txt":
        return pa.table({"text": [line for line in content.splitlines() if line.strip()]})
    if path.suffix == ".json":
        return pa.Table.from_pylist(json.loads(content))
    lines = [line for line in content.split("\n") if line.strip()]
    return pa.Table.from_pylist([json.loads(line) for line in lines])


def _tokenizer(given: Any) -> Any:
    if given is None:
        return WordHashes()
    if not isinstance(given, str):
        return given
    try:
        import transformers
    except ImportError:
        raise EnvironmentFailure(
            "a tokenizer by name needs transformers: pip install 'fedlightning[hf]'"
        ) from None
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(given)
    except (OSError, ValueError) as error:
        raise EnvironmentFailure(f"tokenizer={given}: {error}") from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer
