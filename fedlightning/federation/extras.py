"""Extras merge as their declarations say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fedlightning.algorithms.aggregation.mean import WeightedMean
from fedlightning.algorithms.algorithm import Algorithm
from fedlightning.core.messages import ClientUpdate
from fedlightning.core.state import State, as_complex, sum_dtype
from fedlightning.errors import ConfigError

__all__ = ["ExtrasAccumulator"]


class ExtrasAccumulator:
    """One round's extras: pushed with each update, merged at the end.

    Args:
        algorithm: Whose hooks declare the extras, and whose weights a weighted mean has.

    Attributes:
        merged: The merged extras, by name and key, once :meth:`finish` was called.
        individual: The extras that the server keeps, by client, in the order of aggregation.
    """

    def __init__(self, algorithm: Algorithm) -> None:
        self._algorithm = algorithm
        self._mean, self._weighted = WeightedMean(algorithm.sums), WeightedMean(algorithm.sums)
        self._sums: dict[str, tuple[Tensor, torch.dtype]] = {}
        self._lists: dict[str, list[Tensor]] = {}
        self._pushed: set[str] = set()
        self._complex: State = {}
        self.merged: State = {}
        self.individual: list[tuple[int, Mapping[str, Tensor]]] = []

    @torch.no_grad()
    def push(self, update: ClientUpdate) -> None:
        """Take an update's extras in; they may be overwritten afterwards.

        Raises:
            ConfigError: If integers are declared to merge by a mean.
        """
        means: dict[str, State] = {"mean": {}, "weighted_mean": {}}
        own: State = {}
        for key, value in update.extras.items():
            merge = self._merge(key)
            if merge in means:
                if value.is_complex():
                    self._complex[key] = value.new_empty(0)
                elif not value.is_floating_point():
                    raise ConfigError(
                        f"{key!r} is {value.dtype}, which has no {merge}: declare it with "
                        "merge='sum', 'concatenate' or 'keep', or send floating-point numbers."
                    )
                means[merge][key] = value
            elif merge == "sum":
                self._add(key, value)
            elif merge == "concatenate":
                self._lists.setdefault(key, []).append(value.detach().clone())
            else:
                own[key] = value.detach().clone()
        if own:
            self.individual.append((update.client, own))
        if means["mean"]:
            self._mean.push(means["mean"], 1.0)
            self._pushed.add("mean")
        if means["weighted_mean"]:
            self._weighted.push(means["weighted_mean"], self._algorithm.weight(update))
            self._pushed.add("weighted_mean")

    def note(self, update: ClientUpdate) -> None:
        """Hear of an update that another process takes in; ``extras`` has the names."""
        merges = {self._merge(key) for key in update.extras}
        if "mean" in merges:
            self._mean.note(1.0)
        if "weighted_mean" in merges:
            self._weighted.note(self._algorithm.weight(update))
        self._pushed |= merges

    def combine(self, *exchange: Any) -> None:
        """Add what other processes have taken in; there are means alone."""
        if "mean" in self._pushed:
            self._mean.combine(*exchange)
        if "weighted_mean" in self._pushed:
            self._weighted.combine(*exchange)

    def _merge(self, key: str) -> str:
        extra = self._algorithm.extra_of(key)
        return extra.merge if extra is not None else "mean"

    def finish(self) -> None:
        """Merge what was pushed."""
        if "mean" in self._pushed:
            self.merged |= self._mean.result()
        if "weighted_mean" in self._pushed:
            self.merged |= self._weighted.result()
        self.merged = as_complex(self.merged, self._complex)
        self.merged |= {key: total.to(dtype) for key, (total, dtype) in self._sums.items()}
        self.merged |= {key: torch.cat(_rows(values)) for key, values in self._lists.items()}

    def _add(self, key: str, value: Tensor) -> None:
        """Add integers as 64-bit integers and numbers in the precision of the server's sums."""
        if value.is_floating_point() or value.is_complex():
            wide = sum_dtype(value.device, self._algorithm.sums)
            wide = torch.promote_types(wide, value.dtype) if value.is_complex() else wide
            dtype = value.dtype
        else:
            wide = dtype = torch.int64
        if key in self._sums:
            self._sums[key][0].add_(value.to(wide))
        else:
            self._sums[key] = value.detach().to(wide, copy=True), dtype


def _rows(values: list[Tensor]) -> list[Tensor]:
    """Return tensors that can be concatenated: single numbers become rows of one."""
    return [value.reshape(1) if value.ndim == 0 else value for value in values]
