"""What every adapter needs: the work, the diary of a run, the last line that it prints.

Runs in every peer's environment, so it imports NumPy and torch only.
"""

from __future__ import annotations

import json
import sys
import time
from collections import OrderedDict
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_post_hook

LR, MOMENTUM, BATCH, COHORT = 0.01, 0.9, 50, 10

Pair = tuple[Tensor, Tensor]


def _pooled(published: bool) -> list[nn.Module]:
    """Return max-pool and ReLU in the cheaper order, or in that in which they are published."""
    layers: list[nn.Module] = [nn.MaxPool2d(2), nn.ReLU(inplace=True)]
    return layers[::-1] if published else layers


class FourConv(nn.Module):
    """4convNet for grey images of 28x28: the same layers and keys as fedlightning's Conv4.

    Args:
        published: Whether ReLU comes before pooling: the same function, with more work.
    """

    def __init__(self, published: bool = False) -> None:
        super().__init__()
        blocks = [
            nn.Sequential(
                nn.Conv2d(inputs, outputs, 3, padding=1),
                nn.BatchNorm2d(outputs, track_running_stats=False),
                *_pooled(published),
            )
            for inputs, outputs in pairwise([1, 64, 64, 64, 64])
        ]
        self.body = nn.Sequential(
            OrderedDict(features=nn.Sequential(*blocks), flatten=nn.Flatten())
        )
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, shape (n, 10), of images (n, 1, 28, 28)."""
        return self.head(self.body(x))


class LeNet(nn.Module):
    """Two 5x5 convolutions of 32 and 64 channels, two linear layers.

    Args:
        published: Whether ReLU comes before pooling: the same function, with more work.
    """

    def __init__(self, published: bool = False) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 32, 5, padding=2), *_pooled(published),
            nn.Conv2d(32, 64, 5, padding=2), *_pooled(published),
            nn.Flatten(), nn.Linear(64 * 7 * 7, 512), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(512, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, shape (n, 10), of images (n, 1, 28, 28)."""
        return self.head(self.body(x))


NETS = {"W1": FourConv, "W2": LeNet}


@dataclass(frozen=True)
class Work:
    """What is to be done.

    Attributes:
        train_pool: Inputs and labels of all training examples, one client's after another's.
        test_pool: Those of all test examples.
        train_sizes: Number of training examples of every client.
        test_sizes: Number of its test examples.
        cohorts: The clients of every round.
        weights: The initial weights.
        workload: "W1" or "W2".
    """

    train_pool: Pair
    test_pool: Pair
    train_sizes: list[int]
    test_sizes: list[int]
    cohorts: list[list[int]]
    weights: dict[str, Tensor]
    workload: str

    @cached_property
    def train(self) -> list[Pair]:
        """Every client's training examples; the pool's memory."""
        return _split(self.train_pool, self.train_sizes)

    @cached_property
    def test(self) -> list[Pair]:
        """Every client's test examples."""
        return _split(self.test_pool, self.test_sizes)

    def net(self, published: bool = False) -> nn.Module:
        """Return the network with its initial weights."""
        net = NETS[self.workload](published)
        net.load_state_dict(self.weights)
        return net

    def accuracy(self, state: dict[str, Tensor]) -> float:
        """Return the mean over clients of the accuracy on their own test examples."""
        net = self.net().eval()
        net.load_state_dict(state)
        with torch.no_grad():
            scores = [(net(x).argmax(1) == y).float().mean() for x, y in self.test]
        return float(torch.stack(scores).mean())


@cache
def load(folder: str, workload: str, rounds: int) -> Work:
    """Read what ``benchmarks/rounds.py`` writes; the tensors' memory is shared by all processes."""
    arrays = {
        path.stem: np.load(path, mmap_mode="c" if path.stem.endswith("_x") else None)
        for path in Path(folder).glob("*.npy")
    }
    pools = {
        split: (torch.from_numpy(arrays[f"{split}_x"]), torch.from_numpy(arrays[f"{split}_y"]))
        for split in ("train", "test")
    }
    with np.load(Path(folder, f"{workload}.npz")) as weights:
        return Work(
            train_pool=pools["train"],
            test_pool=pools["test"],
            train_sizes=arrays["train_sizes"].tolist(),
            test_sizes=arrays["test_sizes"].tolist(),
            cohorts=arrays["cohorts"][:rounds].tolist(),
            weights={key: torch.from_numpy(value) for key, value in weights.items()},
            workload=workload,
        )


def _split(pool: Pair, sizes: list[int]) -> list[Pair]:
    return list(zip(*(part.split(sizes) for part in pool), strict=True))


def arguments() -> Work:
    """Return the work that the command line names: folder, workload, number of rounds."""
    folder, workload, rounds = sys.argv[1:4]
    return load(folder, workload, int(rounds))


def options() -> dict[str, str]:
    """Return the variant's settings: the words ``key=value`` behind the work."""
    return dict(word.split("=", 1) for word in sys.argv[4:])


class Diary:
    """When things happened, and how many optimizer steps the clients of this process took."""

    def __init__(self) -> None:
        self.marks: list[float] = []
        self.steps = 0
        self.first_step: float | None = None
        self._forward_hook = register_module_forward_pre_hook(self._forward)
        self._step_hook = register_optimizer_step_post_hook(self._stepped)

    def close(self) -> None:
        """Count no more steps."""
        self._forward_hook.remove()
        self._step_hook.remove()

    def mark(self) -> None:
        """A round begins or ends now; the end of one is the beginning of the next."""
        self.marks.append(time.time())

    def report(self, work: Work, state: dict[str, Tensor], *deviations: str) -> None:
        """Print the run's last line.

        Args:
            work: The work that was done.
            state: The global model after the last round.
            deviations: How the run differs from what was asked for or from the library's defaults.
        """
        result = {
            "marks": self.marks,
            "steps": self.steps,
            "first_step": self.first_step,
            "accuracy": work.accuracy(state),
            "deviations": deviations,
            "torch": torch.__version__,
        }
        print(json.dumps(result), flush=True)

    def _forward(self, module: nn.Module, inputs: Any) -> None:
        if module.training:
            self.first_step = time.time()
            self._forward_hook.remove()

    def _stepped(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        # a server may have an optimizer of its own, with another rate
        self.steps += optimizer.param_groups[0]["lr"] == LR
