"""Krum: trust the states that have the most others close by."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from fedlightning.algorithms.aggregation.base import Aggregator
from fedlightning.algorithms.aggregation.buffered import Gathered, blocks
from fedlightning.algorithms.aggregation.mean import WeightedMean
from fedlightning.core.state import State, Sums
from fedlightning.core.validation import check_integer

__all__ = ["Krum", "MultiKrum", "krum_scores"]


class Krum(Aggregator):
    r"""The state of the one client that is closest to its neighbours.

    .. math:: \theta \leftarrow \theta_{i^*}, \quad i^* = \arg\min_i s(i), \quad
        s(i) = \sum_{j \in N(i)} \lVert \theta_i - \theta_j \rVert^2

    where :math:`N(i)` are the :math:`n - f - 2` clients nearest to client :math:`i`. Distances are
    over parameters only, in float64; of equal scores the client that is first in the cohort wins.
    Buffers are the chosen client's. Weights are ignored.

    Args:
        num_byzantine: How many clients a round may be hostile, :math:`f`; there must be
            :math:`n \ge 2f + 3`.

    Raises:
        ConfigError: If it is not an integer >= 0.

    Source:
        Blanchard, El Mhamdi, Guerraoui, Stainer. Machine Learning with Adversaries: Byzantine
        Tolerant Gradient Descent. NeurIPS 2017. https://arxiv.org/abs/1703.02757

    Example:
        >>> merge = Krum(num_byzantine=1).start({"w": torch.zeros(1)}, parameters=["w"])
        >>> for w in (1.0, 1.25, 1e6, 2.0, 1.5):
        ...     merge.push({"w": torch.tensor([w])}, weight=1)
        >>> merge.result()
        {'w': tensor([1.2500])}
    """

    def __init__(self, num_byzantine: int) -> None:
        name = "federation.aggregator.num_byzantine"
        self.num_byzantine = check_integer(name, num_byzantine, at_least=0)

    def unmet(self, cohort: int) -> tuple[str, str] | None:
        """Return the condition that so many clients do not meet, and the way out, or ``None``."""
        return _too_few(self.name, self.num_byzantine, cohort)

    def start(
        self, reference: Mapping[str, Tensor], parameters: Collection[str], sums: Sums = "float64"
    ) -> Gathered:
        """Start the merging of one round."""

        def krum(states: Sequence[State], weights: Sequence[float]) -> State:
            return states[_best_first(states, parameters, self.num_byzantine)[0]]

        return Gathered(self, reference, krum)


class MultiKrum(Aggregator):
    r"""The mean of the states that Krum scores best.

    .. math:: \theta \leftarrow \frac{1}{m} \sum_{i \in M} \theta_i

    where :math:`M` are the :math:`m` clients of least :math:`s(i)` (see :class:`Krum`). The mean is
    uniform: weights are ignored, because a hostile client chooses its own.

    Args:
        num_byzantine: How many clients a round may be hostile, :math:`f`; there must be
            :math:`n \ge 2f + 3`.
        num_selected: How many states are averaged, :math:`1 \le m \le n - f`; ``None`` means
            :math:`n - f`.

    Raises:
        ConfigError: If one of them is out of its range.

    Source:
        Blanchard, El Mhamdi, Guerraoui, Stainer. Machine Learning with Adversaries: Byzantine
        Tolerant Gradient Descent. NeurIPS 2017. https://arxiv.org/abs/1703.02757

    Example:
        >>> merge = MultiKrum(1, num_selected=2).start({"w": torch.zeros(1)}, parameters=["w"])
        >>> for w in (1.0, 1.25, 1e6, 2.0, 1.5):
        ...     merge.push({"w": torch.tensor([w])}, weight=1)
        >>> merge.result()
        {'w': tensor([1.1250])}
    """

    def __init__(self, num_byzantine: int, num_selected: int | None = None) -> None:
        check_integer("federation.aggregator.num_byzantine", num_byzantine, at_least=0)
        if num_selected is not None:
            name = "federation.aggregator.num_selected"
            check_integer(name, num_selected, at_least=1, other="null for n - f")
        self.num_byzantine = num_byzantine
        self.num_selected = num_selected

    def unmet(self, cohort: int) -> tuple[str, str] | None:
        """Return the condition that so many clients do not meet, and the way out, or ``None``."""
        most = cohort - self.num_byzantine
        if self.num_selected is not None and self.num_selected > most > 0:
            return (
                f"MultiKrum cannot have num_selected {self.num_selected} > n - f = {most}",
                "lower num_selected, or leave it out to take n - f",
            )
        return _too_few(self.name, self.num_byzantine, cohort)

    def start(
        self, reference: Mapping[str, Tensor], parameters: Collection[str], sums: Sums = "float64"
    ) -> Gathered:
        """Start the merging of one round."""

        def multi_krum(states: Sequence[State], weights: Sequence[float]) -> State:
            best = _best_first(states, parameters, self.num_byzantine)
            chosen = sorted(best[: self.num_selected or len(states) - self.num_byzantine])
            mean = WeightedMean(sums)
            for position in chosen:
                mean.push(states[position], weight=1)
            return mean.result()

        return Gathered(self, reference, multi_krum)


def krum_scores(
    states: Sequence[Mapping[str, Tensor]], parameters: Collection[str], num_byzantine: int
) -> list[float]:
    """Return each state's sum of squared distances to its ``n - num_byzantine - 2`` nearest others.

    Args:
        states: The states, n of them.
        parameters: The keys over which distances are taken.
        num_byzantine: How many of them may be hostile; n >= 2 ``num_byzantine`` + 3.

    Example:
        >>> states = [{"w": torch.tensor([w])} for w in (0.0, 1.0, 3.0, 9.0)]
        >>> krum_scores(states, ["w"], num_byzantine=0)
        [10.0, 5.0, 13.0, 100.0]
    """
    count = len(states)
    pairs = torch.zeros(count * (count - 1) // 2, dtype=torch.float64)
    for key in states[0]:
        if key in parameters:
            on_device = [_squared_distances(block) for block in blocks(states, key)]
            pairs += torch.stack(on_device).sum(dim=0).cpu() if on_device else 0.0
    distances = torch.zeros(count, count, dtype=torch.float64)
    row, column = torch.triu_indices(count, count, offset=1)
    distances[row, column] = distances[column, row] = pairs
    distances.fill_diagonal_(-1.0)  # of equal distances, itself is the nearest
    nearest = distances.sort(dim=1).values[:, 1 : count - num_byzantine - 1]
    return [float(score) for score in nearest.sum(dim=1)]


def _squared_distances(block: Tensor) -> Tensor:
    """Return the squared distances of all pairs of rows: 01, 02, ..., 12, ..."""
    wide = block.cpu().double() if block.device.type == "mps" else block.double()
    return F.pdist(wide).square()


def _best_first(
    states: Sequence[Mapping[str, Tensor]], parameters: Collection[str], num_byzantine: int
) -> list[int]:
    """Return the positions of the states by score; of equal scores the first comes first."""
    scores = krum_scores(states, parameters, num_byzantine)
    return sorted(range(len(states)), key=lambda position: scores[position])


def _too_few(rule: str, num_byzantine: int, clients: int) -> tuple[str, str] | None:
    least = 2 * num_byzantine + 3
    if clients >= least:
        return None
    most = (clients - 3) // 2
    lower = f", or lower num_byzantine from {num_byzantine} to {most}" if most >= 0 else ""
    return (f"{rule} needs n >= 2f + 3 = {least} clients a round", f"raise the cohort{lower}")
