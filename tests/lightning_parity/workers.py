"""A federation with two workers beside the same with one."""

from __future__ import annotations

import math
import multiprocessing
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from tests.lightning_parity import federated
from tests.lightning_parity.clients import Clients
from tests.lightning_parity.comparison import Difference, ignoring
from tests.lightning_parity.idiom import Idiom
from tests.lightning_parity.runs import Shown

SECONDS = 60
"""How long two workers may take; a collective that the other one does not join never ends."""


def two_workers(idiom: Idiom, folder: Path) -> list[Difference]:
    """Compare two workers with one: numbers and weights must be the same bits."""
    runs: list[list[Shown]] = []
    for workers in (1, 2):
        try:
            with _limited(), ignoring(idiom):
                clients = Clients(idiom.data, 3)
                runs.append(federated.fit_with_workers(idiom, clients, workers, folder / "run.pt"))
        except Exception as error:
            last = str(error).strip().rpartition("\n")[2]
            text = f"{type(error).__name__}: {last}"
            return [Difference(f"{workers} worker(s)", "no error", text)]
    one, two = runs
    if len(one) != len(two):
        return [Difference("rounds", len(one), len(two))]
    differences: list[Difference] = []
    for index, (right, got) in enumerate(zip(one, two, strict=True)):
        differences += _differences(f"round {index}", right, got)
    return differences


@contextmanager
def _limited() -> Iterator[None]:
    """Raise, and end the workers, if they take too long."""

    def late(*_: Any) -> None:
        raise TimeoutError(f"no end within {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        for worker in multiprocessing.active_children():
            worker.kill()


def _differences(where: str, right: Shown, got: Shown) -> list[Difference]:
    differences = []
    for name in sorted({*right.metrics, *got.metrics}):
        a, b = right.metrics.get(name, math.inf), got.metrics.get(name, math.inf)
        if a != b and not (math.isnan(a) and math.isnan(b)):
            differences.append(Difference(f"{where}, {name}", a, b))
    if right.state.keys() != got.state.keys():
        differences.append(Difference(f"{where}, keys", sorted(right.state), sorted(got.state)))
        return differences
    for key, value in right.state.items():
        if not torch.equal(value.to_dense(), got.state[key].to_dense()):
            differences.append(Difference(f"{where}, {key}", "the same bits", "others"))
    return differences
