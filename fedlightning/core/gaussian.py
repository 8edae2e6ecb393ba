"""Normal distributions with independent components."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

__all__ = ["DiagonalGaussian"]


@dataclass(frozen=True)
class DiagonalGaussian:
    """A normal distribution whose components are independent.

    Args:
        mean: The means, of any shape.
        std: The standard deviations, positive, of the same shape.

    Example:
        >>> import torch
        >>> one = DiagonalGaussian(torch.tensor([1.0]), torch.tensor([0.5]))
        >>> round(float(one.kl(DiagonalGaussian(torch.zeros(1), torch.ones(1)))), 6)
        0.818147
    """

    mean: Tensor
    std: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """Return a sample, differentiable in mean and standard deviation.

        Args:
            noise: Standard normal numbers of the same shape.
        """
        return self.mean + self.std * noise

    def kl(self, other: DiagonalGaussian) -> Tensor:
        r"""Return the divergence from another one, summed over components.

        :math:`\log \frac{s'}{s} + \frac{s^2 + (m - m')^2}{2 s'^2} - \frac{1}{2}` for each.

        Args:
            other: The second argument of the divergence, such as a prior.
        """
        ratio = self.std / other.std
        shift = (self.mean - other.mean) / other.std
        divergence: Tensor = 0.5 * (ratio.square() + shift.square() - 1) - ratio.log()
        return divergence.sum()
