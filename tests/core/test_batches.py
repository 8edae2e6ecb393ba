import warnings
from collections import OrderedDict, UserDict, defaultdict, namedtuple
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_lightning.utilities.data import extract_batch_size, warning_cache
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from fedlightning.core import batches
from fedlightning.core.batches import batch_length, split_batch

Pair = namedtuple("Pair", ["x", "y"])


@dataclass
class Fields:
    text: list[str]
    x: torch.Tensor
    more: Any = None


@dataclass(frozen=True)
class Frozen:
    x: torch.Tensor
    size: int = field(init=False, default=7)


class Encoding(UserDict):
    """A tokenizer's output: a mapping that is not a dict, with an attribute of its own."""

    def __init__(self, data: dict[str, Any]) -> None:
        super().__init__(data)
        self.name = "encoding"


class ReadOnly(Mapping):
    def __init__(self, data):
        self._data = data

    def __getitem__(self, key):
        return self._data[key]

    def __iter__(self):
        return iter(self._data)

    def __len__(self):
        return len(self._data)


def x(n: int = 6, width: int = 2) -> torch.Tensor:
    return torch.arange(float(n * width)).view(n, width)


def y(n: int = 6) -> torch.Tensor:
    return torch.arange(n)


def texts(n: int = 6) -> list[str]:
    return [f"text {i}" for i in range(n)]


CONTAINERS = {
    "tensor": x(),
    "number": torch.tensor(3.0),
    "pair": (x(), y()),
    "list": [x(), y()],
    "triple": (x(), y(), y()),
    "lone": (x(),),
    "unequal": (x(), y(5)),
    "numbers in a tuple": (torch.tensor(3.0), x()),
    "tensor before a number": (x(), torch.tensor(3.0)),
    "dict": {"x": x(), "y": y()},
    "dict with text first": {"text": "all of it", "x": x(), "y": y()},
    "dict with texts first": {"text": texts(), "x": x(), "y": y()},
    "dict with text last": {"x": x(), "y": y(), "text": texts()},
    "dict with None and a number first": {"a": None, "b": 3, "x": x()},
    "ordered dict": OrderedDict(x=x(), y=y()),
    "default dict": defaultdict(list, x=x(), y=y()),
    "user dict": UserDict({"x": x(), "y": y()}),
    "tokenizer": Encoding({"text": texts(), "ids": x(), "mask": x()}),
    "read-only mapping": ReadOnly({"text": texts(), "x": x()}),
    "named tuple": Pair(x(), y()),
    "named tuple with text": Pair("text", y()),
    "dataclass": Fields(texts(), x()),
    "dataclass in a tuple": (Fields(texts(), x()), y()),
    "frozen dataclass": Frozen(x()),
    "texts beside a tensor": [texts(), y()],
    "tensor before texts": [y(), texts()],
    "nested": ((x(), y()), y()),
    "nested dicts": {"a": {"b": {"c": x()}}, "y": y()},
    "nested unequal": {"a": [x(4), x()], "y": y()},
    "bytes": (b"ab", x()),
    "array beside a tensor": (np.zeros((6, 2)), x()),
    "tensor before an array": (x(), np.zeros((6, 2))),
    "empty array": (np.zeros((0, 2)), x()),
    "empty containers": ([], {}, x()),
    "graph": [("x", x()), ("edges", torch.zeros(2, 9))],
    "images and boxes": (x(), [{"boxes": torch.zeros(i, 4)} for i in range(1, 7)]),
    "empty tensor": (x(0), y(0)),
    "parameter": (torch.nn.Parameter(x()), y()),
    "packed": torch.nn.utils.rnn.pack_sequence([y(3), y(2)]),
    "set": {3, 4},
    "texts": texts(),
    "string": "text",
    "nothing": (),
    "object": object(),
}


@pytest.fixture(autouse=True)
def warn_anew():
    batches._warn_once.cache_clear()
    warning_cache.clear()


def told(function, batch):
    """Return what a function returns, and whether it warns."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = function(batch)
    return result, bool(caught)


@pytest.mark.parametrize("name", CONTAINERS)
def test_a_batch_has_the_length_and_the_warning_that_lightning_gives_it(name):
    batch = CONTAINERS[name]
    try:
        expected = told(extract_batch_size, batch)
    except MisconfigurationException:
        expected = 1, True  # Lightning refuses to log: here it is one example, with a warning
    assert told(batch_length, batch) == expected


def test_an_ambiguous_batch_is_named_once():
    with pytest.warns(UserWarning, match=r"ambiguous.*batch_size=\.\.\."):
        batch_length((x(), y(5)))
    assert told(batch_length, (x(), y(4))) == (6, False)


def test_nothing_is_drawn_from_an_iterator():
    stream = iter([x(), x()])
    told(batch_length, (y(), stream))
    assert len(list(stream)) == 2


def test_no_batch_counts_as_one_example_without_a_warning():
    assert told(batch_length, None) == (1, False)


def pieces(batch, n=2):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return split_batch(batch, n)


def plain(batch):
    """Return a batch as lists and dicts, to compare."""
    if isinstance(batch, (torch.Tensor, np.ndarray)):
        return batch.tolist()
    if isinstance(batch, Mapping):
        return {key: plain(value) for key, value in batch.items()}
    if isinstance(batch, (list, tuple)):
        return [plain(value) for value in batch]
    if isinstance(batch, Fields):
        return [batch.text, plain(batch.x), plain(batch.more)]
    return batch


DIVIDED = {
    "pair": ((x(), y()), (x()[:3], y()[:3])),
    "dict with texts": (
        {"text": texts(), "name": "all", "x": x()},
        {"text": texts()[:3], "name": "all", "x": x()[:3]},
    ),
    "tokenizer": (Encoding({"ids": x(), "n": 3}), Encoding({"ids": x()[:3], "n": 3})),
    "read-only mapping": (ReadOnly({"x": x()}), ReadOnly({"x": x()[:3]})),
    "named tuple": (Pair(texts(), y()), Pair(texts()[:3], y()[:3])),
    "dataclass": (Fields(texts(), x(), {"y": y()}), Fields(texts()[:3], x()[:3], {"y": y()[:3]})),
    "texts beside a tensor": ([texts(), y()], [texts()[:3], y()[:3]]),
    "array": ((x(), np.arange(6)), (x()[:3], np.arange(3))),
    "nested": (((x(), [y()]), y()), ((x()[:3], [y()[:3]]), y()[:3])),
    "other tensors": ((x(), torch.tensor(3.0), y(5)), (x()[:3], torch.tensor(3.0), y(5))),
    "boxes": (
        (x(), [{"boxes": torch.zeros(i, 4)} for i in range(1, 7)]),
        (x()[:3], [{"boxes": torch.zeros(i, 4)} for i in range(1, 4)]),
    ),
    "as many tensors as examples": ([y(4)] * 4, [y(4)[:2]] * 4),
}


@pytest.mark.parametrize("name", DIVIDED)
def test_every_container_is_divided(name):
    batch, expected = DIVIDED[name]
    first, second = pieces(batch)
    assert type(first) is type(second) is type(batch)
    assert plain(first) == plain(expected)
    assert batch_length(batch) == batch_length(first) + batch_length(second)


def test_a_mapping_keeps_its_own_attributes_and_the_original_its_examples():
    whole = Encoding({"ids": x()})
    first, _ = pieces(whole)
    assert first.name == "encoding"
    assert len(whole["ids"]) == 6


def test_a_frozen_dataclass_is_divided():
    first, second = pieces(Frozen(x()))
    assert (len(first.x), len(second.x), first.size) == (3, 3, 7)


@pytest.mark.parametrize("batch", [(x(3), y(3)), x(3), {"text": texts(3), "x": x(3)}])
def test_a_batch_with_too_few_examples_is_every_piece(batch):
    assert all(piece is batch for piece in pieces(batch))


def test_pieces_differ_by_one_example_at_most():
    assert [len(piece) for piece in split_batch(x(11), 3)] == [4, 4, 3]
