"""A complete validation or test epoch of a module: on one client's data, or on several clients'.

The module lives through it as in a run of plain Lightning that does nothing else: its own start and
end hooks, those around every batch, and its metric objects, lists and attributes as they were.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.precision import Precision
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor
from torch.nn import functional as F

from fedlightning.core.batches import Batch, Split, batch_length
from fedlightning.core.metrics import CLASS
from fedlightning.core.overrides import overrides
from fedlightning.core.seeding import Key, forked_generators
from fedlightning.engine._lightning.stages import at_stage
from fedlightning.engine.class_counts import ClassCounts
from fedlightning.engine.local_log import EPOCH, EVALUATION_BATCH, LocalLog
from fedlightning.engine.steps import with_index
from fedlightning.engine.workers.apart import apart

__all__ = ["EvaluationEpoch", "Measured", "no_step"]

_OF_AN_EPOCH = ("start", "epoch_start", "epoch_end", "end")


def no_step(batch: Batch, batch_idx: int) -> None:
    """Do nothing: stands in for a step that the module lacks."""


@dataclass(frozen=True)
class Measured:
    """What a module logs in an evaluation epoch.

    Args:
        by_part: Of each part of the data, means over its batches of what is logged around them;
            metric objects, which know nothing of parts, are left out.
        by_batch: The same over all batches, metric objects included.
        by_epoch: What the hooks at the start and the end of the epoch log.
        has_metrics: Whether metric objects are logged around batches.
    """

    by_part: list[dict[str, float]] = field(default_factory=list)
    by_batch: dict[str, float] = field(default_factory=dict)
    by_epoch: dict[str, float] = field(default_factory=dict)
    has_metrics: bool = False

    @property
    def all(self) -> dict[str, float]:
        """Everything; a name that the epoch's end logs again has that value."""
        return {**self.by_batch, **self.by_epoch}


class EvaluationEpoch:
    """One complete evaluation epoch after another.

    Args:
        trainer: The trainer whose module is evaluated.
        split: ``"val"`` runs ``validation_step``, if there is one; any other split runs
            ``test_step``, and without one a module that gives logits for ``(x, y)`` is evaluated as
            a classifier.
    """

    def __init__(self, trainer: pl.Trainer, split: Split) -> None:
        self._trainer = trainer
        self._module = module = trainer.lightning_module
        self._split, self._stage = split, "validation" if split == "val" else "test"
        step = getattr(module, f"{self._stage}_step")
        base = pl.LightningModule
        self._own = step is not no_step and overrides(module, f"{self._stage}_step", base)
        self._step = step if self._own else None
        self._hooks: dict[str, Callable[..., Any]] = {}
        for part in (*_OF_AN_EPOCH, "model_eval", "model_train", "batch_start", "batch_end"):
            name = f"on_{self._stage}_{part}"
            if self._own and overrides(module, name, base):
                self._hooks[part] = getattr(module, name)

    @property
    def measures(self) -> bool:
        """Whether there is anything to run: validation needs a ``validation_step``."""
        return self._own or self._split != "val"

    @property
    def hooked(self) -> bool:
        """Whether the module has hooks around its epochs, its batches or its modes."""
        return bool(self._hooks)

    @property
    def pools(self) -> bool:
        """Whether the module has a hook that sees a whole epoch, and so all clients at once."""
        return not self._hooks.keys().isdisjoint(_OF_AN_EPOCH)

    def run(
        self,
        parts: Iterable[tuple[Key, Iterable[Batch]]],
        log: LocalLog,
        per_class: bool = False,
        show: Callable[[dict[str, float]], None] | None = None,
    ) -> Measured:
        """Evaluate the module on parts of data, one after another, as one epoch.

        Args:
            parts: Clients' random streams and batches.
            log: Collects what the module logs.
            per_class: Whether each part's accuracies are also measured class by class.
            show: Gets what the batches have given, before the hooks at the epoch's end.
        """
        if not self.measures:
            return Measured()
        trainer, module = self._trainer, self._module
        modes = [(child, child.training) for child in module.modules()]
        device = trainer.strategy.root_device
        step = with_index(self._step or _classifier_step(module, log))
        with ExitStack() as stack:
            stack.enter_context(at_stage(trainer, self._split))
            stack.enter_context(apart())
            # what the module makes here may be changed later, by a client that is fine-tuned
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.no_grad())
            stack.enter_context(log.capture())
            log.moment = EPOCH
            self._hook("model_eval") if "model_eval" in self._hooks else module.eval()
            self._hook("start")
            self._hook("epoch_start")
            log.moment, index = EVALUATION_BATCH, 0
            context = self._precision_context(trainer.precision_plugin)
            by_part: list[dict[str, float]] = []
            for key, batches in parts:
                classes = ClassCounts() if per_class else None
                watching = classes.watching(module) if classes is not None else nullcontext()
                with forked_generators(key, device), watching:
                    for batch in batches:
                        log.on_batch(batch)
                        self._hook("batch_start", batch, index)
                        with context():
                            output = step(batch, index)
                        self._hook("batch_end", output, batch, index)
                        if classes is not None:
                            classes.add(batch)
                        index += 1
                by_part.append(log.cut() | self._accuracies(classes))
            log.settle()
            if show is not None:
                show(log.means())
            log.moment = EPOCH
            self._hook("epoch_end")
            by_batch, has_metrics = log.by_batch(), log.has_metrics
            values = log.collect(reset=False)
            self._hook("end")
            log.reset_metrics()
            if "model_train" in self._hooks:
                self._hook("model_train")
            else:
                for child, mode in modes:
                    child.training = mode
        of_all = {name: value for name, value in values.items() if name in by_batch}
        if len(by_part) == 1:
            of_all = by_part[0] | of_all
        by_epoch = {name: value for name, value in values.items() if name not in by_batch}
        return Measured(by_part, of_all, by_epoch, has_metrics)

    def _accuracies(self, classes: ClassCounts | None) -> dict[str, float]:
        if classes is None:
            return {}
        prefix = f"{'val' if self._split == 'val' else 'global'}/{CLASS}"
        return {f"{prefix}{label}": value for label, value in classes.accuracies().items()}

    def _hook(self, part: str, *args: Any) -> None:
        if (hook := self._hooks.get(part)) is not None:
            hook(*args)

    def _precision_context(self, precision: Precision) -> Callable[[], Any]:
        if self._split == "val":
            return precision.val_step_context
        return precision.test_step_context


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
