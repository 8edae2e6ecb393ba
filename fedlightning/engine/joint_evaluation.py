"""Loss and accuracy of many small clients, whose examples share forward passes.

A client with ten test examples costs more in calls than in arithmetic. Where a module has the
default evaluation steps, and its network makes of each example what is in that example alone,
examples of several clients go through the network together; what is logged is computed from each
client's own rows, batch by batch, as in an epoch of its own.

A kernel may add up a row of few rows in another order than a row of many, so fewer than
:data:`LEAST_ROWS` rows are filled up. A linear layer may add up a row in another order by where in
a vector register's width it begins, so where rows do not fill registers, a batch begins at a row
that does begin one. What a client scores then depends neither on the clients that it is evaluated
with nor on the worker.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.precision import Precision
from torch import Tensor, nn
from torch.nn import functional as F

from fedlightning.core.batches import Batch, Split
from fedlightning.core.metrics import LogFlags
from fedlightning.core.module_snapshot import eval_mode
from fedlightning.core.overrides import overrides
from fedlightning.datamodules import ClientTask
from fedlightning.engine._lightning.stages import at_stage
from fedlightning.engine.per_example import doubt, watched
from fedlightning.engine.steps import transfers_batches
from fedlightning.engine.workers.apart import apart
from fedlightning.models.base import FederatedModule

__all__ = ["LEAST_ROWS", "JointEvaluation", "obstacle"]

LEAST_ROWS = 32
"""With so many rows or more, the kernels known to us treat a row alike whatever is beside it."""

_WIDTH = 16  # bytes; rows that begin at multiples of it are treated alike, as torch's memory does
_ROWS = 64  # larger batches of a convolutional network's activations do not fit the cache
_STEPS = ("validation_step", "test_step", "_evaluate_batch", "__call__")
_OWN = ("log", "train", "eval", "all_gather")


def obstacle(trainer: pl.Trainer, module: pl.LightningModule) -> str | None:
    """Return why clients are evaluated one by one, or ``None``."""
    name = type(module).__name__
    if not isinstance(module, FederatedModule):
        return f"{name} is not a FederatedModule, so its steps are its own"
    for methods, base in ((_STEPS, FederatedModule), (_OWN, pl.LightningModule)):
        for method in methods:
            if overrides(module, method, base):
                return f"{name} has a {method} of its own"
    if transfers_batches(trainer, module) or type(trainer.precision_plugin) is not Precision:
        return "hooks or a precision plugin change batches"
    if torch.is_anomaly_enabled():
        return "anomalies are to be detected"
    return watched(module) or doubt(module, head=True)


@dataclass
class _Scored:
    """One batch of a client: how many examples it has, their mean loss, how many are hit.

    Args:
        size: Number of examples.
        start: The first of its rows among those that go through the network together.
        loss: The mean loss.
        hits: How many examples are classified correctly.
    """

    size: int
    start: int = 0
    loss: Tensor | None = None
    hits: int = 0


@dataclass
class _Pending:
    """Batches of few rows that wait for others."""

    inputs: list[Tensor] = field(default_factory=list)
    labels: list[Tensor] = field(default_factory=list)
    scored: list[_Scored] = field(default_factory=list)
    rows: int = 0

    def add(self, x: Tensor, y: Tensor, scored: _Scored, begin: int) -> None:
        """Add a batch, and rows that count for nothing, up to a multiple of ``begin``."""
        scored.start, filling = self.rows, -scored.size % begin
        self.inputs.append(x)
        self.labels.append(y)
        if filling:  # by a row that is there
            self.inputs.append(x[:1].expand(filling, *x.shape[1:]))
            self.labels.append(y[:1].expand(filling))
        self.scored.append(scored)
        self.rows += scored.size + filling


class _Unsuitable(Exception):
    """Batches or outputs are not those of a classifier."""


class JointEvaluation:
    """Evaluates clients of one split, of which the next ones are read ahead.

    Args:
        trainer: The trainer whose module is evaluated; see :func:`obstacle`.
        split: ``"val"``, or another split, whose metrics are called ``global/...``.
        tasks: The clients to come, in this order.
        batches: Returns a client's batches.
        least_rows: Batches of fewer rows go through the network together; 1 where there is only
            one client.
    """

    def __init__(
        self,
        trainer: pl.Trainer,
        split: Split,
        tasks: Sequence[ClientTask],
        batches: Callable[[ClientTask], Iterator[Batch]],
        least_rows: int = LEAST_ROWS,
    ) -> None:
        self._least_rows = least_rows
        self._trainer, self._split, self._batches = trainer, split, batches
        self._module = trainer.lightning_module
        self._begin = _rows_between(self._module)
        prefix = "val" if split == "val" else "global"
        self._loss, self._accuracy = f"{prefix}/loss", f"{prefix}/acc"
        self._tasks = tasks
        self._places = {task: place for place, task in enumerate(tasks)}
        self._found: dict[ClientTask, dict[str, float]] = {}
        self._suitable = True

    @property
    def flags(self) -> Mapping[str, LogFlags]:
        """Where the metrics are logged: as the default steps say."""
        return {self._loss: LogFlags(False, None), self._accuracy: LogFlags(True, None)}

    def of_client(self, task: ClientTask) -> dict[str, float] | None:
        """Return what the module logs on a client's data; ``None`` if it must be asked itself."""
        if task not in self._found and self._suitable:
            try:
                self._found |= self._measure(self._ahead(task))
            except Exception:
                # one by one it fails again, with the client named, or shows that it does not
                self._suitable = False
        return self._found.pop(task, None)

    def _ahead(self, task: ClientTask) -> Iterator[ClientTask]:
        """Return a client, and the next ones."""
        place = self._places.get(task)
        if place is None:
            return iter([task])
        return map(self._tasks.__getitem__, range(place, len(self._tasks)))

    def _measure(self, tasks: Iterator[ClientTask]) -> dict[ClientTask, dict[str, float]]:
        """Return the scores of the first clients, until enough examples have been through."""
        module, pending, rows = self._module, _Pending(), 0
        of_clients: dict[ClientTask, list[_Scored]] = {}
        with ExitStack() as stack:
            stack.enter_context(at_stage(self._trainer, self._split))
            stack.enter_context(apart())
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.no_grad())
            stack.enter_context(eval_mode(module))
            for task in tasks:
                of_clients[task] = scored = []
                for x, y in map(_classified, self._batches(task)):
                    size = y.shape[0]
                    scored.append(_Scored(size))
                    if size >= self._least_rows:
                        self._score(x, y, scored[-1:])
                        continue
                    if pending.rows + size > _ROWS:
                        self._flush(pending)
                        pending = _Pending()
                    pending.add(x, y, scored[-1], self._begin)
                rows += task.num_examples
                if rows >= 4 * _ROWS:
                    break
            if pending.scored:
                self._flush(pending)
            return self._metrics(of_clients)

    def _flush(self, pending: _Pending) -> None:
        """Score batches of few rows in one forward pass."""
        x, y = torch.cat(pending.inputs), torch.cat(pending.labels)
        if (missing := self._least_rows - pending.rows) > 0:
            x = torch.cat([x, x.new_zeros(missing, *x.shape[1:])])
        self._score(x, y, pending.scored)

    def _score(self, x: Tensor, y: Tensor, scored: Iterable[_Scored]) -> None:
        """Put into each batch the loss and the hits of its rows of ``y``."""
        drawn = torch.get_rng_state()
        logits = self._module(x)[: y.shape[0]]
        if logits.ndim != 2 or logits.shape[:1] != y.shape or not logits.is_floating_point():
            raise _Unsuitable
        if not torch.equal(drawn, torch.get_rng_state()):
            raise _Unsuitable  # a network that draws has a random stream for each client
        hits = (logits.argmax(dim=1) == y).tolist()
        for each in scored:
            rows = slice(each.start, each.start + each.size)
            each.loss = F.cross_entropy(logits[rows], y[rows])
            each.hits = sum(hits[rows])

    def _metrics(
        self, of_clients: Mapping[ClientTask, Sequence[_Scored]]
    ) -> dict[ClientTask, dict[str, float]]:
        """Return every client's means over its batches, as the module would log them."""
        every = [each for scored in of_clients.values() for each in scored]
        losses = iter(torch.stack([each.loss for each in every if each.loss is not None]).tolist())
        found: dict[ClientTask, dict[str, float]] = {}
        for task, scored in of_clients.items():
            total = loss = accuracy = 0.0
            for each in scored:
                total += each.size
                loss += next(losses) * each.size
                # a batch's accuracy is logged in single precision
                accuracy += float(np.float32(each.hits) / np.float32(each.size)) * each.size
            found[task] = {self._loss: loss / total, self._accuracy: accuracy / total}
        return found


def _rows_between(module: nn.Module) -> int:
    """Return the number of rows after which rows begin a vector register again, in all layers.

    Example:
        >>> _rows_between(nn.Linear(64, 5)), _rows_between(nn.Sequential(nn.Linear(54, 5)))
        (1, 4)
    """
    widths = {
        (layer.in_features, layer.weight.element_size())
        for layer in module.modules()
        if isinstance(layer, nn.Linear)
    }
    if all(features * size % _WIDTH == 0 for features, size in widths):
        return 1
    return max(_WIDTH // size for _, size in widths)


def _classified(batch: Batch) -> tuple[Tensor, Tensor]:
    """Return inputs and classes of a batch."""
    pair = batch if isinstance(batch, (tuple, list)) and len(batch) == 2 else (None, None)
    x, y = pair
    if not (isinstance(x, Tensor) and isinstance(y, Tensor)) or y.dtype != torch.int64:
        raise _Unsuitable
    if x.shape[:1] != y.shape or not y.shape[0]:
        raise _Unsuitable
    return x, y
