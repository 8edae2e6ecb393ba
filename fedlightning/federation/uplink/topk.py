"""Top-k: only the largest entries are sent."""

from __future__ import annotations

import math
from fractions import Fraction

import torch

from fedlightning.core.state import State
from fedlightning.errors import ConfigError
from fedlightning.federation.uplink.compression import Compression
from fedlightning.federation.uplink.encoding import Frame, sparse

__all__ = ["TopK"]


class TopK(Compression):
    r"""Send the entries of largest magnitude, the others as zero.

    .. math:: D(p)_j = p_j \text{ if } j \text{ is one of the } k \text{ largest } |p_j|,
        \text{ else } 0; \quad k = \lceil \text{fraction} \cdot d \rceil

    The k are of the whole update's d entries (of all tensors together), as in the paper; of equal
    magnitudes the first are sent, and zeros never. Each entry takes its own bytes and those of its
    position: up to four in a tensor of more than 65,536 entries.

    Args:
        fraction: The share of the entries to send, 0 < ``fraction`` <= 1.
        error_feedback: Whether clients add what they could not send to their next update; without
            it, entries that are small in every round are never sent.

    Raises:
        ConfigError: If ``fraction`` is out of its range.

    Source:
        Stich, Cordonnier, Jaggi. Sparsified SGD with Memory. NeurIPS 2018.
        https://arxiv.org/abs/1809.07599. Aji, Heafield. Sparse Communication for Distributed
        Gradient Descent. EMNLP 2017. https://arxiv.org/abs/1704.05021

    Example:
        >>> TopK(fraction=0.5).compress({"w": torch.tensor([0.1, -3.0, 2.0, 0.2])}).state
        {'w': tensor([ 0., -3.,  2.,  0.])}
    """

    def __init__(self, fraction: float = 0.01, error_feedback: bool = True) -> None:
        if not 0 < fraction <= 1:
            raise ConfigError(
                f"federation.compression.fraction must be within (0, 1], got {fraction}; it is the "
                "share of an update's entries to send."
            )
        self.fraction = fraction
        super().__init__(error_feedback)

    def count(self, entries: int) -> int:
        """Return how many of so many entries are sent at most.

        Example:
            >>> TopK(0.01).count(1000), TopK(0.01).count(5)
            (10, 1)
        """
        return math.ceil(
            Fraction(str(float(self.fraction))) * entries
        )  # the number as it was written

    def frames(self, delta: State) -> list[Frame]:
        """Return the tensors as frames."""
        if not delta:
            return []
        # in float64 no two different magnitudes become equal
        sizes = torch.cat([value.reshape(-1).double().abs() for value in delta.values()])
        kept = _largest(sizes, self.count(sizes.numel()))
        masks = torch.split(kept, [value.numel() for value in delta.values()])
        return [
            sparse(key, value, mask)
            for (key, value), mask in zip(delta.items(), masks, strict=True)
        ]


def _largest(sizes: torch.Tensor, count: int) -> torch.Tensor:
    """Return which entries are the ``count`` largest; of equal ones the first, of zeros none."""
    if not count:
        return torch.zeros_like(sizes, dtype=torch.bool)
    least = sizes.topk(count, sorted=False).values.min()
    kept = sizes > least
    if least > 0:
        ties = torch.nonzero(sizes == least).reshape(-1)
        kept[ties[: count - int(kept.sum())]] = True
    return kept
