"""`self.log` while a client trains or is evaluated: collected cheaply, one number per client."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torchmetrics import Metric

from fedlightning.algorithms.aggregation import widest_float
from fedlightning.core.batches import batch_length
from fedlightning.core.metrics import LogFlags
from fedlightning.errors import ConfigError

__all__ = ["EPOCH", "EVALUATION_BATCH", "TRAINING_BATCH", "LocalLog", "Moment"]

_REDUCTIONS = {
    "mean": "mean",
    "max": "max",
    "amax": "max",
    "min": "min",
    "amin": "min",
    "sum": "sum",
}
_FLAGS = {(bar, to): LogFlags(bar, to) for bar in (False, True) for to in (None, False, True)}


@dataclass(frozen=True)
class Moment:
    """When a module logs, and what that means for names and means.

    Args:
        by_batch: Whether this is around a batch, rather than at the start or the end of an epoch.
        on_step: Lightning's default of ``self.log(..., on_step=)`` then.
        on_epoch: Lightning's default of ``self.log(..., on_epoch=)`` then.
    """

    by_batch: bool
    on_step: bool
    on_epoch: bool


TRAINING_BATCH = Moment(by_batch=True, on_step=True, on_epoch=False)
"""A training step, and the hooks around it."""

EVALUATION_BATCH = Moment(by_batch=True, on_step=False, on_epoch=True)
"""A validation or test step, and the hooks around it."""

EPOCH = Moment(by_batch=False, on_step=False, on_epoch=True)
"""The hooks at the start and the end of an epoch."""


@dataclass
class _Logged:
    """What was logged under one name."""

    flags: LogFlags
    reduction: str
    by_batch: bool
    twice: bool  # by step and by epoch: one name becomes three
    values: list[tuple[Any, float]] = field(default_factory=list)
    metric: Metric | None = None
    settled: float | None = None
    cut: int = 0  # values before this one belong to an earlier client


class LocalLog:
    """Stands in for a module's ``log`` during one client's turn.

    The stock ``log`` costs hundreds of microseconds a call and its x-axis is the optimizer step; a
    client's values are wanted once a round instead. Each call appends one detached scalar and its
    weight; :meth:`collect` turns them into weighted means.

    Args:
        module: The module whose ``log`` is stood in for.

    Attributes:
        flags: Where each name is shown, as the module has said.
        moment: When the next values are logged.
    """

    def __init__(self, module: pl.LightningModule) -> None:
        self.flags: dict[str, LogFlags] = {}
        self.moment = TRAINING_BATCH
        self._module = module
        self._logged: dict[str, _Logged] = {}
        self._done: list[Metric] = []
        self._batch: Any = None
        self._muted = False

    @contextmanager
    def muted(self) -> Iterator[None]:
        """Take nothing inside the ``with`` block."""
        before, self._muted = self._muted, True
        try:
            yield
        finally:
            self._muted = before

    @contextmanager
    def capture(self) -> Iterator[LocalLog]:
        """Stand in for ``module.log`` (and so for ``log_dict``) inside the ``with`` block.

        Blocks may be nested: a client that trains may be evaluated meanwhile.
        """
        own = vars(self._module)
        before = own.get("log")
        own["log"] = self.record
        try:
            yield self
        finally:
            self._batch = None
            if before is None:
                del own["log"]
            else:
                own["log"] = before

    def on_batch(self, batch: Any) -> None:
        """Name the batch whose length weights the next values."""
        self._batch = batch

    def record(
        self,
        name: str,
        value: Any,
        prog_bar: bool = False,
        logger: bool | None = None,
        on_step: bool | None = None,
        on_epoch: bool | None = None,
        reduce_fx: str | Callable[..., Any] = "mean",
        batch_size: int | None = None,
        **_: Any,
    ) -> None:
        """Take one value; the arguments are those of ``LightningModule.log``.

        Raises:
            ConfigError: ``reduce_fx`` is a function that Lightning does not take either.
        """
        if self._muted:
            return
        logged = self._logged.get(name)
        if logged is None:
            moment = self.moment
            step = moment.on_step if on_step is None else on_step
            epoch = moment.on_epoch if on_epoch is None else on_epoch
            logged = self._logged[name] = _Logged(
                _FLAGS[bool(prog_bar), logger], _reduction(name, reduce_fx), moment.by_batch,
                step and epoch,
            )  # fmt: skip
        if isinstance(value, Metric):
            logged.metric = value
            if logged.twice and (last := getattr(value, "_forward_cache", None)) is not None:
                logged.values = [(last, 1.0)]
            return
        if isinstance(value, Tensor):
            value = value.detach()
        weight = batch_size if batch_size is not None else batch_length(self._batch)
        logged.values.append((value, float(weight)))

    def settle(self) -> None:
        """Take the values of metric objects now: the module may empty them before the end."""
        for logged in self._logged.values():
            if logged.metric is not None:
                logged.settled = _compute_alone(logged.metric)

    def cut(self) -> dict[str, float]:
        """Return the means of what was logged around batches since the last cut.

        Metric objects are left out, and nothing is forgotten.
        """
        means: dict[str, float] = {}
        recent = {n: e for n, e in self._logged.items() if e.by_batch and len(e.values) > e.cut}
        for name, values in _numbers(recent).items():
            entry = recent[name]
            entry.values = values  # as numbers, so that no device is asked again
            if entry.metric is None:
                means |= _named(name, entry, values[entry.cut :])
            entry.cut = len(values)
        return means

    @property
    def has_metrics(self) -> bool:
        """Whether metric objects were logged around batches since the last :meth:`collect`."""
        return any(entry.by_batch and entry.metric for entry in self._logged.values())

    def by_batch(self) -> frozenset[str]:
        """Return the names logged around batches since the last :meth:`collect`."""
        return frozenset(
            shown for name, logged in self._logged.items() if logged.by_batch
            for shown in (_names(name) if logged.twice else (name,))
        )  # fmt: skip

    def collect(self, reset: bool = True) -> dict[str, float]:
        """Return the means since the last call, and start anew.

        What was logged by step and by epoch is ``name_step``, its last value, ``name_epoch``, and
        ``name``, which only callbacks see: Lightning's names.

        Args:
            reset: Whether metric objects are reset now; otherwise :meth:`reset_metrics` does it.
        """
        means = self.means()
        self._done = [entry.metric for entry in self._logged.values() if entry.metric is not None]
        self._logged = {}
        if reset:
            self.reset_metrics()
        return means

    def reset_metrics(self) -> None:
        """Reset the metric objects whose values were collected."""
        for metric in self._done:
            metric.reset()
        self._done = []

    def means(self) -> dict[str, float]:
        """Return the means since the last :meth:`collect`, and forget nothing."""
        means: dict[str, float] = {}
        for name, values in _numbers(self._logged).items():
            entry = self._logged[name]
            means |= _named(name, entry, values)
            self.flags[name] = entry.flags
            if entry.twice:
                _, step, epoch = _names(name)
                self.flags[step] = self.flags[epoch] = entry.flags
                self.flags[name] = LogFlags(prog_bar=False, logger=False)
        return means

    def discard(self) -> None:
        """Forget what a client that failed has logged; metric objects start anew."""
        for child in self._module.modules():
            if isinstance(child, Metric):
                child.reset()
        self._logged.clear()


def _named(name: str, entry: _Logged, values: list[tuple[float, float]]) -> dict[str, float]:
    """Return what an entry has come to, under its name or its three names."""
    if entry.metric is None:
        mean = _reduce(values, entry.reduction)
    else:
        mean = _compute_alone(entry.metric) if entry.settled is None else entry.settled
    if not entry.twice:
        return {name: mean}
    _, step, epoch = _names(name)
    return {name: mean, step: values[-1][0] if values else math.nan, epoch: mean}


def _names(name: str) -> tuple[str, str, str]:
    return name, f"{name}_step", f"{name}_epoch"


def _reduction(name: str, reduce_fx: str | Callable[..., Any]) -> str:
    """Return how values become one; see :meth:`LocalLog.record`."""
    if reduce_fx == "mean":
        return "mean"
    given = getattr(reduce_fx, "__name__", str(reduce_fx))
    known = _REDUCTIONS.get(given)
    if known is None or (callable(reduce_fx) and reduce_fx is not getattr(torch, given, reduce_fx)):
        raise ConfigError(
            f"self.log({name!r}, ..., reduce_fx={given}): only mean, max, min and sum are known, "
            "to Lightning, too; log a torchmetrics.Metric instead."
        )
    return known


def _numbers(logged: dict[str, _Logged]) -> dict[str, list[tuple[float, float]]]:
    """Return the values of every name as numbers, with their weights: one wait for the device."""
    tensors = [
        _single(name, value).to(widest_float(value.device))
        for name, entry in logged.items()
        for value, _ in entry.values
        if isinstance(value, Tensor)
    ]
    taken = iter(torch.stack(tensors).tolist() if tensors else ())
    return {
        name: [
            (next(taken) if isinstance(value, Tensor) else float(value), weight)
            for value, weight in entry.values
        ]
        for name, entry in logged.items()
    }


def _single(name: str, value: Tensor) -> Tensor:
    if value.numel() != 1:
        raise ConfigError(
            f"self.log({name!r}, ...): a tensor of shape {tuple(value.shape)} is not one number; "
            "take its mean, or log each element under a name of its own."
        )
    return value.reshape(())


def _compute_alone(metric: Metric) -> float:
    """Return a metric's value on this process: other workers have other clients."""
    reach, metric.distributed_available_fn = metric.distributed_available_fn, lambda: False
    try:
        return float(metric.compute())
    finally:
        metric.distributed_available_fn = reach


def _reduce(entries: list[tuple[float, float]], reduction: str) -> float:
    values = [value for value, _ in entries]
    if reduction == "max":
        return max(values)
    if reduction == "min":
        return min(values)
    if reduction == "sum":
        return sum(values)
    weight = sum(weight for _, weight in entries)
    return sum(value * weight for value, weight in entries) / weight if weight else math.nan
