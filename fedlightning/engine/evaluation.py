"""Evaluation of a model on clients' data, client by client, and means over evaluation views."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.precision import Precision
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor
from torch.nn import functional as F

from fedlightning.core.batches import batch_length
from fedlightning.core.metrics import CLASS, LogFlags, Metrics
from fedlightning.core.seeding import Key, default_seed, forked_generators
from fedlightning.core.statistics import over_clients
from fedlightning.core.views import CENTRAL, EvaluationView
from fedlightning.datamodules import Batch, ClientTask, FederatedDataModule, Split
from fedlightning.engine._lightning.stock_step import transfer_batch
from fedlightning.engine.class_counts import ClassCounts
from fedlightning.engine.local_log import LocalLog
from fedlightning.engine.steps import overrides, transfers_batches, with_index
from fedlightning.engine.workers.collectives import Workers
from fedlightning.errors import ConfigError

__all__ = ["ClientEvaluator", "evaluate", "evaluation_steps", "federated_data"]


class ClientEvaluator:
    """Runs a module's evaluation steps on clients and averages over each view.

    Args:
        trainer: The trainer whose module, data and precision are used.
        seed: Seed of what an evaluation step draws; ``None`` means the run's.

    Attributes:
        per_class: Whether accuracies are also measured class by class.
        accuracies: ``global/acc`` of every client of a view, by the view's name, at the last
            evaluation.
        last_round: The round of that evaluation; ``None`` before the first one.
    """

    def __init__(self, trainer: pl.Trainer, seed: int | None = None) -> None:
        self.per_class = False
        self.accuracies: dict[str, list[float]] = {}
        self.last_round: int | None = None
        self._trainer = trainer
        self._given_seed = seed
        self._flags: dict[str, LogFlags] = {}

    def evaluate(
        self, task: ClientTask, batches: Iterable[Batch] | None = None
    ) -> dict[str, float]:
        """Return what the module logs on one client's validation or test data.

        Args:
            task: Client and split.
            batches: Batches to use instead of the client's.
        """
        trainer = self._trainer
        log = LocalLog(trainer.lightning_module)
        # central data has the random stream after those of all clients
        client = task.client if task.client != CENTRAL else federated_data(trainer).num_clients
        key = Key(self._seed, "evaluate", round=trainer.current_epoch, client=client)
        with forked_generators(key, trainer.strategy.root_device):
            scores = evaluate(
                trainer.lightning_module,
                self.batches(task.client, task.split) if batches is None else batches,
                task.split,
                log,
                trainer.precision_plugin,
                ClassCounts() if self.per_class else None,
            )
        self._flags.update({name: log.flags.get(name, LogFlags()) for name in scores})
        return scores

    @property
    def _seed(self) -> int:
        return default_seed(self._given_seed)

    def batches(self, client: int, split: Split) -> Iterator[Batch]:
        """Return a client's data in evaluation batches, ready for the module."""
        trainer = self._trainer
        batches = federated_data(trainer).batches(
            client, split, device=trainer.strategy.root_device
        )
        if transfers_batches(trainer, trainer.lightning_module):
            return (transfer_batch(trainer, batch) for batch in batches)
        return batches

    def summarise(self, scores: Mapping[ClientTask, Mapping[str, float]]) -> Metrics:
        """Return the metrics of every view: means over its clients, on whatever worker they are.

        Args:
            scores: What this worker has measured.
        """
        everyones: dict[tuple[Split, int], tuple[int, Mapping[str, float]]] = {}
        for part, flags in Workers.of(self._trainer).gather((dict(scores), self._flags)):
            for task, values in part.items():
                everyones[task.split, task.client] = task.num_examples, values
            self._flags |= flags
        metrics: dict[str, tuple[float, LogFlags]] = {}
        accuracies: dict[str, list[float]] = {}
        for view in _validation_last(federated_data(self._trainer).evaluation_views()):
            places = ((view.split, client) for client in view.clients)
            measured = [everyones[place] for place in places if place in everyones]
            metrics |= self._metrics_of(view, measured)
            if not view.on_validation_data:
                accuracies[view.name] = [
                    values["global/acc"] for _, values in measured if "global/acc" in values
                ]
        if not self._trainer.sanity_checking:
            self.accuracies = accuracies
            self.last_round = self._trainer.current_epoch
        return metrics

    def _metrics_of(
        self, view: EvaluationView, measured: Sequence[tuple[int, Mapping[str, float]]]
    ) -> dict[str, tuple[float, LogFlags]]:
        """Return a view's metrics, given how many examples each client has and its scores."""
        by_name: dict[str, list[tuple[float, int]]] = {}
        for size, scores in measured:
            for name, value in scores.items():
                by_name.setdefault(name, []).append((value, size))
        metrics: dict[str, tuple[float, LogFlags]] = {}
        for name, entries in by_name.items():
            flags = self._flags[name]
            quiet = replace(flags, prog_bar=False)
            values, sizes = [value for value, _ in entries], [size for _, size in entries]
            for key, value in over_clients(name, values, sizes).items():
                shown = flags if key == name and not view.name else quiet
                if key == name or key not in by_name:  # a name of the module's own comes first
                    metrics[view.metric(key)] = value, shown
        return metrics


def _validation_last(views: Sequence[EvaluationView]) -> list[EvaluationView]:
    """Return the views with those of validation data last, whose metrics prevail."""
    return sorted(views, key=lambda view: view.on_validation_data)


def federated_data(trainer: pl.Trainer) -> FederatedDataModule:
    """Return a trainer's data module.

    Raises:
        ConfigError: The trainer has another kind of data.
    """
    data = getattr(trainer, "datamodule", None)
    if not isinstance(data, FederatedDataModule):
        got = type(data).__name__ if data is not None else "none"
        raise ConfigError(
            f"FederatedTrainer needs a FederatedDataModule as `datamodule`; got {got}. For arrays "
            "or Datasets see FederatedArrays and ClientDatasets in fedlightning.datamodules."
        )
    return data


@torch.no_grad()
def evaluate(
    module: pl.LightningModule,
    batches: Iterable[Batch],
    split: Split,
    log: LocalLog,
    precision: Precision,
    classes: ClassCounts | None = None,
) -> dict[str, float]:
    """Return what the module logs about one client's data, averaged over its examples.

    Args:
        module: The model to evaluate, already in eval mode.
        batches: The client's batches.
        split: ``"val"`` runs ``validation_step``, if there is one; any other split runs
            ``test_step``, and without one a module that gives logits for ``(x, y)`` is evaluated as
            a classifier.
        log: Collects what the module logs.
        precision: The trainer's precision plugin.
        classes: Counts what is classified right, class by class; ``None`` counts nothing.
    """
    own = getattr(module, "validation_step" if split == "val" else "test_step")
    if own is no_step or not overrides(module, own.__name__, pl.LightningModule):
        if split == "val":
            return {}
        own = _classifier_step(module, log)
    step = with_index(own)
    with log.capture(), classes.watching(module) if classes is not None else nullcontext():
        for index, batch in enumerate(batches):
            log.on_batch(batch)
            with precision.test_step_context():
                step(batch, index)
            if classes is not None:
                classes.add(batch)
        scores = log.collect()
    if classes is not None:
        for label, accuracy in classes.accuracies().items():
            scores[f"{'val' if split == 'val' else 'global'}/{CLASS}{label}"] = accuracy
    return scores


def no_step(batch: Batch, batch_idx: int) -> None:
    """Do nothing: stands in for a step that the module lacks."""


def _predict_classes(module: pl.LightningModule, batch: Batch, batch_idx: int) -> Any:
    """Return class probabilities where the module returns logits, else its outputs."""
    outputs = module(batch[0] if isinstance(batch, (tuple, list)) else batch)
    logits = isinstance(outputs, Tensor) and outputs.ndim == 2 and outputs.is_floating_point()
    return outputs.softmax(dim=-1) if logits else outputs


@contextmanager
def evaluation_steps(module: pl.LightningModule | None) -> Iterator[None]:
    """Add the evaluation steps that a module lacks, inside the ``with`` block.

    Lightning skips or refuses evaluation of a module without the step, but a classifier can be
    evaluated on the clients' test data without one.
    """
    stand_ins = {"validation_step": no_step, "test_step": no_step}
    if module is not None:
        stand_ins["predict_step"] = partial(_predict_classes, module)
    missing = [
        name
        for name in stand_ins
        if module is not None and not overrides(module, name, pl.LightningModule)
    ]
    for name in missing:
        vars(module)[name] = stand_ins[name]
    try:
        yield
    finally:
        for name in missing:
            del vars(module)[name]


def _classifier_step(module: pl.LightningModule, log: LocalLog) -> Callable[[Batch], None]:
    def step(batch: Batch) -> None:
        if not (isinstance(batch, (tuple, list)) and len(batch) == 2):
            return
        x, y = batch
        try:
            logits = module(x)
        except Exception as error:
            rank_zero_warn(
                f"global/loss and global/acc are not measured: {type(module).__name__} has no "
                f"test_step, and forward(inputs) fails: {error}."
            )
            return
        classes = isinstance(y, Tensor) and y.ndim == 1 and not y.is_floating_point()
        if not classes or not isinstance(logits, Tensor) or logits.ndim != 2:
            return
        size = batch_length(batch)
        log.record("global/loss", F.cross_entropy(logits, y), batch_size=size)
        log.record("global/acc", (logits.argmax(dim=-1) == y).float().mean(), batch_size=size)

    return step
