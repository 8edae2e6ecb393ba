"""What a batch can be: Lightning finds its size, which weights what is logged, in any of them."""

from __future__ import annotations

from collections import UserDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from tests.lightning_parity.idiom import FEATURES
from tests.lightning_parity.idioms.base import RATE, Net


class Batch(NamedTuple):
    """A batch with names."""

    inputs: Tensor
    labels: Tensor


@dataclass
class Record:
    """A batch as a dataclass."""

    inputs: Tensor
    labels: Tensor


def texts(n: int) -> list[str]:
    """Return n sentences of unlike length."""
    return [f"sentence {'x' * index}" for index in range(n)]


def as_dict(batch: Any) -> Any:
    return {"inputs": batch[0], "labels": batch[1]}


def as_dict_text_first(batch: Any) -> Any:
    return {"text": texts(len(batch[1])), "inputs": batch[0], "labels": batch[1]}


def as_user_dict(batch: Any) -> Any:
    return UserDict(as_dict(batch))


def as_user_dict_text_first(batch: Any) -> Any:
    return UserDict(as_dict_text_first(batch))


def as_record(batch: Any) -> Any:
    return Record(*batch)


def as_named_tuple(batch: Any) -> Any:
    return Batch(*batch)


def as_nested(batch: Any) -> Any:
    return {"meta": {"names": texts(len(batch[1])), "parts": [{"x": batch[0]}]}, "y": (batch[1],)}


def as_text_and_labels(batch: Any) -> Any:
    return [texts(len(batch[1])), batch[0], batch[1]]


def as_inputs_alone(batch: Any) -> Any:
    return batch[0]


class Reads(Net):
    """A module that finds inputs and labels in whatever it gets."""

    def loss(self, batch: Any) -> Tensor:
        x, y = self.parts(batch)
        return F.cross_entropy(self(x), y)

    def parts(self, batch: Any) -> tuple[Tensor, Tensor]:
        return batch["inputs"], batch["labels"]


class ReadsAttributes(Reads):
    def parts(self, batch: Any) -> tuple[Tensor, Tensor]:
        return batch.inputs, batch.labels


class ReadsNested(Reads):
    def parts(self, batch: Any) -> tuple[Tensor, Tensor]:
        return batch["meta"]["parts"][0]["x"], batch["y"][0]


class ReadsList(Reads):
    def parts(self, batch: Any) -> tuple[Tensor, Tensor]:
        return batch[-2], batch[-1]


class AutoEncoder(Net):
    """A module whose batch is one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(FEATURES, 2), nn.Tanh(), nn.Linear(2, FEATURES))

    def loss(self, batch: Any) -> Tensor:
        return F.mse_loss(self(batch), batch)


class Sentences(Dataset[Any]):
    """Items that are dictionaries with a text in front, as tokenizers leave them."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"text": f"sentence {index}", "input_ids": self.x[index], "label": self.y[index]}


def tokens(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return n sentences of six words, and whether their first word is an early one."""
    x = torch.randint(20, (n, 6), generator=torch.Generator().manual_seed(seed))
    return x, (x[:, 0] < 10).long()


class Tokens(Net):
    """Bags of words."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.EmbeddingBag(20, 4), nn.Linear(4, 3))

    def loss(self, batch: Any) -> Tensor:
        return F.cross_entropy(self(batch["input_ids"]), batch["label"])


def line(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return n points near a plane."""
    x = torch.randn(n, FEATURES, generator=torch.Generator().manual_seed(seed))
    return x, x @ torch.tensor([1.0, -2.0, 0.5, 0.0]) + 0.1 * x[:, 0].sin()


class Regression(Net):
    """Real targets, a loss that sums over the batch, and the number of examples said."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(FEATURES, 1))

    def loss(self, batch: Any) -> Tensor:
        return F.mse_loss(self(batch[0]).squeeze(1), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        error = (self(batch[0]).squeeze(1) - batch[1]).abs()
        self.log("val/mae", error.mean(), batch_size=len(batch[1]))
        self.log("val/worst", error.max(), reduce_fx="max")

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), RATE / 4)
