"""One training step of a client that may be in trouble, before the first round.

What a module of the user's own does with a batch is not known beforehand. So where its layers and
the clients' data look as if they did not go together, its step is tried on the batch in question,
and everything is put back. Where nothing looks so, nothing is tried.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fedlightning.core.module_snapshot import WholeModule
from fedlightning.core.seeding import Key, forked_generators
from fedlightning.datamodules import FederatedDataModule
from fedlightning.datamodules.examples import has_classes
from fedlightning.datamodules.pooled import PooledData
from fedlightning.engine.local_log import LocalLog
from fedlightning.engine.resident import LIGHTNING_ATTRIBUTES
from fedlightning.engine.steps import ready_batches, with_index
from fedlightning.errors import DataError

__all__ = ["check_by_trial", "lone_clients", "lone_text"]

_LONE = re.compile("more than 1 value per channel")
_LABEL = re.compile("out of bounds|smaller than num_classes")


def check_by_trial(
    trainer: pl.Trainer, module: pl.LightningModule, data: FederatedDataModule, seed: int
) -> None:
    """Refuse clients whose batch BatchNorm, or whose labels the loss, cannot take.

    Args:
        trainer: The trainer.
        module: A module with a step of its own, on its device; it stays as it is.
        data: The clients' data.
        seed: The run's seed.

    Raises:
        DataError: The step fails for such a reason on a batch that looks like it.
    """
    pooled = data.client_data
    if not isinstance(pooled, PooledData) or not module.automatic_optimization:
        return  # a step that optimizes by hand needs the optimizers
    trial = _Trial(trainer, module, data, pooled, seed)
    if trainer.limit_train_batches == 1.0:
        trial.check_lone_examples()
    trial.check_labels()


def lone_clients(data: FederatedDataModule, sizes: np.ndarray) -> np.ndarray:
    """Return the clients whose last batch is a single example."""
    remainders = np.asarray(sizes) % data.batch_size
    return np.flatnonzero((remainders == (1 if data.batch_size > 1 else 0)) & ~data.drop_last)


def lone_text(client: int, count: int, module: nn.Module) -> str:
    """Return what to say of a client whose last batch is a single example."""
    return (
        f"client {client} has {count} sample{'' if count == 1 else 's'}, so a batch of 1 sample, "
        f"which {type(module).__name__}'s BatchNorm cannot train on; set data.drop_last=true, "
        "change data.batch_size, or use GroupNorm."
    )


@dataclass(frozen=True)
class _Trial:
    """A module and the data with which it might be in trouble."""

    trainer: pl.Trainer
    module: pl.LightningModule
    data: FederatedDataModule
    pooled: PooledData
    seed: int

    def check_lone_examples(self) -> None:
        """Refuse a client whose last batch is a single example, if BatchNorm cannot take that."""
        sizes = self.pooled.splits.sizes("train")
        lone = lone_clients(self.data, sizes)
        if not lone.size or not any(isinstance(m, _BatchNorm) for m in self.module.modules()):
            return
        client = int(lone[0])
        error = self._error_of_a_step(client, self.data.indices(client, "train")[:1])
        if isinstance(error, ValueError) and _LONE.search(str(error)):
            raise DataError(lone_text(client, int(sizes[client]), self.module)) from error

    def check_labels(self) -> None:
        """Refuse a label that the loss cannot take, beside outputs that are fewer than classes."""
        labels, outputs = self.pooled.train.labels, _last_outputs(self.module)
        held = self.pooled.splits.parts("train").flat
        if labels is None or not has_classes(labels) or not len(held) or outputs is None:
            return
        if self.data.num_classes <= outputs:
            return
        highest = int(held[labels[held].argmax()])
        client = self.pooled.splits.owner("train", highest)
        own = self.data.indices(client, "train")
        first = int(np.flatnonzero(own == highest)[0])
        error = self._error_of_a_step(client, np.roll(own, -first)[: self.data.batch_size])
        if isinstance(error, (IndexError, RuntimeError)) and _LABEL.search(str(error)):
            number = self.data.sample_number(client, "train", highest)
            name = type(self.module).__name__
            raise DataError(
                f"client {client}, sample {number}: the loss of {name} cannot take label "
                f"{labels[highest]}: its last layer has {outputs} outputs, the data has "
                f"{self.data.num_classes} classes ({str(error).rstrip('.')})."
            ) from error

    def _error_of_a_step(self, client: int, rows: np.ndarray) -> Exception | None:
        """Return what a training step raises on some of a client's examples, and undo the step."""
        device = self.trainer.strategy.root_device
        key, log = Key(self.seed, "fit", client=client), LocalLog(self.module)
        pool, module = self.pooled.pool(client, "train"), self.module
        before = WholeModule(module, LIGHTNING_ATTRIBUTES)
        try:
            with forked_generators(key, device), log.capture(), log.muted():
                examples = torch.from_numpy(rows)
                batches = self.data.read(pool, examples, key=key, device=device)
                batch = next(ready_batches(self.trainer, module, batches))
                with self.trainer.precision_plugin.train_step_context():
                    with_index(module.training_step)(batch, 0)
        except Exception as error:  # of the user's code: the run will say what else is wrong
            return error
        finally:
            before.restore()
        return None


def _last_outputs(module: nn.Module) -> int | None:
    """Return how many outputs the last layer has that has a number of them."""
    layers = [m for m in module.modules() if isinstance(m, (nn.Linear, nn.Conv1d, nn.Conv2d))]
    if not layers:
        return None
    last = layers[-1]
    return int(last.out_features if isinstance(last, nn.Linear) else last.out_channels)
