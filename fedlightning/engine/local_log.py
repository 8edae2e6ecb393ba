"""`self.log` while a client trains or is evaluated: collected cheaply, one number per client."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torchmetrics import Metric

from fedlightning.algorithms.aggregation import widest_float
from fedlightning.core.batches import batch_length
from fedlightning.core.metrics import LogFlags

__all__ = ["LocalLog"]


class LocalLog:
    """Stands in for a module's ``log`` during one client's turn.

    The stock ``log`` costs hundreds of microseconds a call and its x-axis is the optimizer step; a
    client's values are wanted once a round instead. Each call appends one detached scalar and its
    weight; :meth:`collect` turns them into weighted means.

    Args:
        module: The module whose ``log`` is stood in for.
    """

    def __init__(self, module: pl.LightningModule) -> None:
        self.flags: dict[str, LogFlags] = {}
        self._module = module
        self._scalars: dict[str, list[tuple[Any, float]]] = {}
        self._metrics: dict[str, Metric] = {}
        self._reductions: dict[str, str] = {}
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
        """Take one value; the arguments are those of ``LightningModule.log``."""
        if self._muted:
            return
        if name not in self.flags:
            self.flags[name] = LogFlags(prog_bar, logger)
            self._reductions[name] = getattr(reduce_fx, "__name__", str(reduce_fx))
        if isinstance(value, Metric):
            self._metrics[name] = value
            return
        if isinstance(value, Tensor):
            value = value.detach()
        weight = batch_size if batch_size is not None else batch_length(self._batch)
        self._scalars.setdefault(name, []).append((value, float(weight)))

    def collect(self) -> dict[str, float]:
        """Return the means since the last call, and start anew."""
        names = list(self._scalars)
        tensors = [
            value.reshape(()).to(widest_float(value.device))
            for name in names
            for value, _ in self._scalars[name]
            if isinstance(value, Tensor)
        ]
        numbers = iter(torch.stack(tensors).tolist() if tensors else ())  # one wait for the device
        means: dict[str, float] = {}
        for name in names:
            entries = [
                (next(numbers) if isinstance(value, Tensor) else float(value), weight)
                for value, weight in self._scalars[name]
            ]
            means[name] = _reduce(entries, self._reductions[name])
        for name, metric in self._metrics.items():
            means[name] = _compute_alone(metric)
        for metric in self._metrics.values():
            metric.reset()
        self._scalars.clear()
        self._metrics.clear()
        return means

    def discard(self) -> None:
        """Forget what a client that failed has logged; metric objects start anew."""
        for child in self._module.modules():
            if isinstance(child, Metric):
                child.reset()
        self._scalars.clear()
        self._metrics.clear()


def _compute_alone(metric: Metric) -> float:
    """Return a metric's value on this process: other workers have other clients."""
    reach, metric.distributed_available_fn = metric.distributed_available_fn, lambda: False
    try:
        return float(metric.compute())
    finally:
        metric.distributed_available_fn = reach


def _reduce(entries: list[tuple[float, float]], reduction: str) -> float:
    values = [value for value, _ in entries]
    if reduction in ("max", "amax"):
        return max(values)
    if reduction in ("min", "amin"):
        return min(values)
    if reduction == "sum":
        return sum(values)
    weight = sum(weight for _, weight in entries)
    return sum(value * weight for value, weight in entries) / weight if weight else float("nan")
