"""Posterior networks: evidence of a density, Dirichlet parameters, and measures of uncertainty."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

__all__ = [
    "Measure",
    "dirichlet_entropy",
    "dirichlet_parameters",
    "expected_entropy",
    "expected_log_likelihood",
    "log_evidence",
    "mutual_information",
    "uncertainty",
]

BOUND = 50.0
"""Log evidence ends here, at both sides."""

Measure = Literal["entropy", "log_prob", "mi", "categorical_entropy"]
"""What uncertainty is: the Dirichlet distribution's entropy, minus the log evidence, mutual
information of class and parameters, or the expected entropy of the class."""


def log_evidence(log_prob: Tensor, dim: int, clamped: bool = True) -> Tensor:
    r"""Return :math:`\ell = \text{clamp}(\log p(z) + \frac{d}{2} \log 4 \pi, -50, 50)`.

    Gradients pass the clamp unchanged.

    Args:
        log_prob: :math:`\log p(z)`, of any shape.
        dim: d, the number of features.
        clamped: Whether it ends at the bounds.

    Example:
        >>> mode = torch.tensor(-math.log(2 * math.pi))  # of a standard normal in two dimensions
        >>> round(float(log_evidence(mode, dim=2).exp()), 4)
        2.0
    """
    found = log_prob + 0.5 * dim * math.log(4 * math.pi)
    if not clamped:
        return found
    return found.clamp(-BOUND, BOUND).detach() + (found - found.detach())


def dirichlet_parameters(probabilities: Tensor, evidence: Tensor) -> Tensor:
    r"""Return :math:`\alpha = 1 + q e^\ell`.

    Args:
        probabilities: q, shape (n, C).
        evidence: :math:`\ell`, shape (n,).

    Example:
        >>> alpha = dirichlet_parameters(torch.tensor([[0.5, 0.3, 0.2]]), torch.tensor([2.0]).log())
        >>> [round(float(a), 4) for a in alpha[0]]
        [2.0, 1.6, 1.4]
    """
    return 1 + probabilities * evidence.exp().unsqueeze(-1)


def expected_log_likelihood(alpha: Tensor, labels: Tensor) -> Tensor:
    r"""Return :math:`\psi(\alpha_y) - \psi(\alpha_0)`, shape (n,), with the digamma function.

    Args:
        alpha: Shape (n, C).
        labels: y, shape (n,).
    """
    own = alpha.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    return torch.digamma(own) - torch.digamma(alpha.sum(dim=-1))


def dirichlet_entropy(alpha: Tensor) -> Tensor:
    """Return the differential entropy of Dirichlet distributions, shape (n,).

    Example:
        >>> round(float(dirichlet_entropy(torch.ones(3))), 4)  # uniform: -log 2
        -0.6931
    """
    total, classes = alpha.sum(dim=-1), alpha.shape[-1]
    normal = torch.lgamma(alpha).sum(dim=-1) - torch.lgamma(total)
    pull = ((alpha - 1) * torch.digamma(alpha)).sum(dim=-1)
    return normal + (total - classes) * torch.digamma(total) - pull


def expected_entropy(alpha: Tensor) -> Tensor:
    """Return the expected entropy of the categorical distribution, shape (n,)."""
    total = alpha.sum(dim=-1, keepdim=True)
    terms = torch.digamma(alpha + 1) - torch.digamma(total + 1)
    return -(alpha / total * terms).sum(dim=-1)


def mutual_information(alpha: Tensor) -> Tensor:
    """Return the entropy of the expected distribution less the expected entropy, shape (n,)."""
    mean = alpha / alpha.sum(dim=-1, keepdim=True)
    return -(mean * mean.log()).sum(dim=-1) - expected_entropy(alpha)


def uncertainty(measure: Measure, alpha: Tensor, evidence: Tensor) -> Tensor:
    """Return a measure of uncertainty, the larger the less certain, shape (n,).

    Args:
        measure: Which one.
        alpha: Dirichlet parameters, shape (n, C).
        evidence: Log evidence, unclamped, shape (n,).
    """
    if measure == "log_prob":
        return -evidence
    if measure == "entropy":
        return dirichlet_entropy(alpha)
    return mutual_information(alpha) if measure == "mi" else expected_entropy(alpha)
