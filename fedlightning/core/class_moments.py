"""Sums over features, class by class, which merge by addition, and the moments that follow."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["ClassSums"]


@dataclass
class ClassSums:
    """Count, sum and sum of squares of the features of each class.

    The sums of several batches or clients are the sum of theirs, exactly, whichever of them lack a
    class. Averages of means and variances have no such property.

    Args:
        count: Examples of each class, shape (C,).
        total: Sums of their features, shape (C, d).
        squares: Sums of the squares, shape (C, d).

    Example:
        >>> sums = ClassSums.zeros(2, 1)
        >>> sums.add(torch.tensor([[1.0], [3.0], [5.0]]), torch.tensor([0, 0, 0]))
        >>> mean, variance = sums.moments()
        >>> float(mean[0]), round(float(variance[0]), 4)
        (3.0, 2.6667)
    """

    count: Tensor
    total: Tensor
    squares: Tensor

    @classmethod
    def zeros(
        cls,
        num_classes: int,
        features: int,
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float64,
    ) -> ClassSums:
        """Return the sums over no example."""
        count = torch.zeros(num_classes, device=device, dtype=dtype)
        total = torch.zeros(num_classes, features, device=device, dtype=dtype)
        return cls(count, total, total.clone())

    @torch.no_grad()
    def add(self, features: Tensor, labels: Tensor) -> None:
        """Take a batch in.

        Args:
            features: Shape (n, d), or (n, ...), which is flattened.
            labels: Shape (n,); what is not a class, such as -100, is left out.
        """
        wanted = (labels >= 0) & (labels < len(self.count))
        rows, labels = features.flatten(1)[wanted].to(self.total.dtype), labels[wanted]
        self.count.index_add_(0, labels, torch.ones_like(labels, dtype=self.count.dtype))
        self.total.index_add_(0, labels, rows)
        self.squares.index_add_(0, labels, rows.square())

    def moments(self) -> tuple[Tensor, Tensor]:
        """Return mean and biased variance of each class, shapes (C, d); 0 where there is none."""
        number = self.count.unsqueeze(1)
        present = number > 0
        number = torch.where(present, number, torch.ones_like(number))
        mean = torch.where(present, self.total / number, torch.zeros_like(self.total))
        variance = (self.squares / number - mean.square()).clamp(min=0)
        return mean, torch.where(present, variance, torch.zeros_like(variance))
