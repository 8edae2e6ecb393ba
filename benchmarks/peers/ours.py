"""fedlightning, as a user would run it; settings as ``devices=2 channels_last=true fused=true``."""

from __future__ import annotations

import json
import logging
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
from peers.common import BATCH, Diary, arguments, options
from workloads import federation, module

from fedlightning import ClientUpdate, FederatedTrainer
from fedlightning.datamodules import Assignment, FederatedArrays, Partition


class Consecutive(Partition):
    """Every client has the examples that follow those of the client before.

    Args:
        train: Number of training examples of every client.
        test: Number of test examples of every client.
    """

    needs_labels = False

    def __init__(self, train: list[int], test: list[int]) -> None:
        self.train, self.test = train, test

    def assign(self, *_: Any) -> Assignment:
        """Cut both pools."""
        return Assignment(*(_ranges(sizes) for sizes in (self.train, self.test)))


def _ranges(sizes: list[int]) -> list[np.ndarray]:
    ends = np.cumsum(sizes)
    return [np.arange(end - size, end) for end, size in zip(ends, sizes, strict=True)]


class Notes(pl.Callback):
    """Writes times and steps into a file for each worker: they are processes of their own.

    Steps are those that the engine reports: it may take them without torch's optimizers.

    Args:
        diary: Where they are collected.
        folder: Where the files are written when training ends.
    """

    def __init__(self, diary: Diary, folder: Path) -> None:
        self.diary, self.folder, self.steps = diary, folder, 0

    def on_train_start(self, *_: Any) -> None:
        """The first round begins."""
        self.diary.mark()

    def on_client_end(self, trainer: pl.Trainer, net: Any, update: ClientUpdate) -> None:
        """One of this worker's clients has been trained."""
        self.steps += update.steps

    def on_aggregate_end(self, *_: Any) -> None:
        """A round ends: the global model is the round's."""
        self.diary.mark()

    def on_train_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Write the file."""
        notes = [self.steps, self.diary.marks, self.diary.first_step]
        (self.folder / str(trainer.global_rank)).write_text(json.dumps(notes))

    def collect(self) -> None:
        """Put what the workers wrote into this process's diary."""
        notes = [json.loads(path.read_text()) for path in sorted(self.folder.iterdir())]
        steps, marks, first_steps = zip(*notes, strict=True)
        self.diary.steps, self.diary.marks = sum(steps), marks[0]
        # a worker without clients has no first step; nor has an engine that calls no module
        self.diary.first_step = min(filter(None, first_steps), default=marks[0][0])


OF_THE_FEDERATION = ("channels_last", "clients_per_kernel", "keep_freed_memory")


def main() -> None:
    """Run federated averaging."""
    work, diary = arguments(), Diary()
    settings = {key: json.loads(value) for key, value in options().items()}
    devices = settings.get("devices", 1)
    warnings.simplefilter("ignore")
    for name in ("pytorch_lightning", "lightning_fabric", "torch.distributed"):
        logging.getLogger(name).setLevel(logging.ERROR)
    data = FederatedArrays(
        work.train_pool, work.test_pool, num_clients=len(work.train_sizes), batch_size=BATCH,
        partition=Consecutive(work.train_sizes, work.test_sizes), seed=0,
    )  # fmt: skip
    net = module(work.workload)
    net.fused = settings.get("fused")
    with tempfile.TemporaryDirectory() as folder:
        notes = Notes(diary, Path(folder))
        FederatedTrainer(
            federation=federation(
                **{name: settings[name] for name in OF_THE_FEDERATION if name in settings}
            ),
            precision=settings.get("precision"), max_epochs=len(work.cohorts), limit_val_batches=0,
            callbacks=[notes], devices=devices, accelerator="cpu", logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            **({"strategy": "ddp_fork"} if devices > 1 else {}),
        ).fit(net, datamodule=data)  # fmt: skip
        notes.collect()
    state = {key: value for key, value in net.state_dict().items() if key in work.weights}
    diary.report(work, state, "no logger, no checkpoints")


if __name__ == "__main__":
    main()
