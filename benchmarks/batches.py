"""What reading clients' batches costs beside a plain DataLoader over the same examples.

python benchmarks/batches.py --turns 5

Of each kind of dataset both read the same batches, client after client, the plain loader as one
list of batches of one dataset: reading alone, nothing is trained. Both are timed in turns, so that
the ratio is one of the same minutes; a turn of processes includes neither start. Needs the extras
``hf`` (for the kind ``hugging-face``) and nothing else.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from fedlightning.core.seeding import Key
from fedlightning.datamodules import FederatedDataset

CLIENTS, BATCH = 100, 20


class Items(Dataset[Any]):
    """A map-style dataset whose items are computed one by one."""

    def __init__(self, count: int) -> None:
        self.inputs = torch.rand(count, 3, 16, 16)
        self.targets = torch.arange(count) % 10

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> Any:
        return self.inputs[index] - 0.5, int(self.targets[index])


class Files(Dataset[Any]):
    """PNG files with a random crop, a flip and a normalisation."""

    def __init__(self, folder: Path, count: int) -> None:
        self.paths = [folder / f"{index}.png" for index in range(count)]
        self.targets = np.arange(count) % 10
        pixels = np.random.default_rng(0).integers(256, size=(count, 32, 32, 3), dtype=np.uint8)
        for path, each in zip(self.paths, pixels, strict=True):
            Image.fromarray(each).save(path)
        self.transform = v2.Compose(
            [v2.PILToTensor(), v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip(),
             v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.25] * 3)]
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Any:
        with Image.open(self.paths[index]) as image:
            return self.transform(image), int(self.targets[index])


def hugging_face(count: int) -> Any:
    """Return a dataset with a column of token ids and one of labels."""
    import datasets

    rng = np.random.default_rng(0)
    columns = {"ids": rng.integers(1000, size=(count, 64)), "label": np.arange(count) % 10}
    return datasets.Dataset.from_dict(columns)


def measure(dataset: Any, workers: int, turns: int, **options: Any) -> tuple[float, float]:
    """Return the median seconds of a pass: of the plain loader, and over all clients."""
    data = FederatedDataset(
        dataset, dataset, num_clients=CLIENTS, batch_size=BATCH, num_workers=workers, seed=0,
        check_data=False, **options,
    )  # fmt: skip
    data.setup()
    passes = [(client, Key(0, "fit", client=client)) for client in range(CLIENTS)]
    orders = [data.indices(c)[data.epoch_order(key, data.num_examples(c))] for c, key in passes]
    batches = [
        order[at : at + BATCH].tolist() for order in orders for at in range(0, len(order), BATCH)
    ]
    loader: DataLoader[Any] = DataLoader(
        dataset, batch_sampler=batches, num_workers=workers, persistent_workers=workers > 0
    )

    def ours() -> int:
        data.expect(passes) if data.reads_ahead else None
        return sum(1 for client, key in passes for _ in data.batches(client, "train", key=key))

    def plain() -> int:
        return sum(1 for _ in loader)

    assert ours() == plain() == len(batches)  # starts the processes, too
    seconds: dict[Callable[[], int], list[float]] = {plain: [], ours: []}
    for turn in range(turns):
        for read in (plain, ours) if turn % 2 else (ours, plain):
            start = time.perf_counter()
            read()
            seconds[read].append(time.perf_counter() - start)
    data.teardown("fit")
    return median(seconds[plain]), median(seconds[ours])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--examples", type=int, default=10_000)
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"{platform.processor() or platform.machine()}, torch {torch.__version__}, {date.today()}"
    )
    print(
        f"{given.examples:,} examples of {CLIENTS} clients in batches of {BATCH}, reading alone\n"
    )
    print("| dataset | processes | plain, s | clients, s | ratio |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        kinds: dict[str, tuple[Any, dict[str, Any]]] = {
            "map-style": (Items(given.examples), {}),
            "hugging-face": (hugging_face(given.examples), {"label_key": "label"}),
            "image files": (Files(Path(folder), given.examples), {}),
        }
        for name, (dataset, options) in kinds.items():
            for workers in (0, 2):
                plain, ours = measure(dataset, workers, given.turns, **options)
                row = f"{workers} | {plain:.2f} | {ours:.2f} | {ours / plain:.2f}"
                print(f"| {name} | {row} |", flush=True)


if __name__ == "__main__":
    main()
