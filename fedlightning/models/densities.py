"""Densities of features, one for each class: radial flows and Gaussians."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedlightning.core.class_moments import ClassSums
from fedlightning.core.validation import check_integer

__all__ = ["ClassDensities", "GaussianClasses", "RadialFlows"]


class ClassDensities(nn.Module, ABC):
    r"""Densities :math:`p(z \mid c)` and frequencies :math:`\pi_c` of the classes in a mixture.

    Args:
        num_classes: C.
        features: d.

    Attributes:
        prior: The frequencies, shape (C,); uniform at first.
    """

    prior: Tensor

    def __init__(self, num_classes: int, features: int) -> None:
        super().__init__()
        self.num_classes = check_integer("num_classes", num_classes, at_least=1)
        self.features = check_integer("features", features, at_least=1)
        self.register_buffer("prior", torch.full((num_classes,), 1 / num_classes))

    @abstractmethod
    def log_prob(self, z: Tensor) -> Tensor:
        """Return the log density of each class, shape (n, C), of features (n, d)."""

    @abstractmethod
    def log_prob_of(self, z: Tensor, labels: Tensor, constant: bool = False) -> Tensor:
        """Return the log density of each example's own class, shape (n,).

        Args:
            z: Features, shape (n, d).
            labels: Classes, shape (n,).
            constant: Whether the density's parameters get no gradients from it; features do.
        """

    def log_mixture(self, z: Tensor) -> Tensor:
        r"""Return :math:`\log \sum_c \pi_c\, p(z \mid c)`, shape (n,)."""
        return torch.logsumexp(self.prior.log() + self.log_prob(z), dim=-1)

    def reset_parameters(self) -> None:
        """Start anew, with uniform frequencies."""
        self.prior.fill_(1 / self.num_classes)

    def start(self) -> None:
        """Begin a client's turn."""

    def observe(self, z: Tensor, labels: Tensor) -> None:
        """See features of the turn; densities that are not trained follow from them."""

    def settle(self) -> None:
        """Take up what was seen, after an optimizer step."""


class RadialFlows(ClassDensities):
    r"""A chain of radial transforms for each class, over a standard normal distribution.

    A transform takes z to :math:`z + b h (z - z_0)` with :math:`r = |z - z_0|`,
    :math:`h = 1 / (a + r)`, :math:`a = \text{softplus}(a')`, :math:`b = -a + \text{softplus}(b')`;
    :math:`\log |\det| = (d - 1) \log(1 + b h) + \log(1 + b h - b r h^2)`. The log density is that
    of the normal distribution at the end of the chain plus all these.

    Args:
        num_classes: C.
        features: d.
        transforms: Length of the chains, T.

    Attributes:
        centers: :math:`z_0`, shape (C, T, d).
        alpha_prime: :math:`a'`, shape (C, T).
        beta_prime: :math:`b'`, shape (C, T).

    Source:
        Rezende, Mohamed. Variational Inference with Normalizing Flows. ICML 2015.
        https://arxiv.org/abs/1505.05770

    Example:
        >>> RadialFlows(num_classes=3, features=2, transforms=4).log_prob(torch.zeros(5, 2)).shape
        torch.Size([5, 3])
    """

    def __init__(self, num_classes: int, features: int, transforms: int = 30) -> None:
        super().__init__(num_classes, features)
        check_integer("transforms", transforms, at_least=1)
        self.centers = nn.Parameter(torch.empty(num_classes, transforms, features))
        self.alpha_prime = nn.Parameter(torch.empty(num_classes, transforms))
        self.beta_prime = nn.Parameter(torch.empty(num_classes, transforms))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        r"""Draw all parameters uniformly within :math:`\pm 1 / \sqrt{d}`."""
        super().reset_parameters()
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -(self.features**-0.5), self.features**-0.5)

    def flow(self, z: Tensor, classes: Tensor, constant: bool = False) -> tuple[Tensor, Tensor]:
        """Return where features go, and the log determinant of that.

        Args:
            z: Features, shape (..., d).
            classes: Whose chain they go through, of a shape that broadcasts with (...).
            constant: Whether parameters get no gradients.
        """
        own = [p.detach() if constant else p for p in self.parameters()]
        centers, alpha_prime, beta_prime = (parameter[classes] for parameter in own)
        alpha = F.softplus(alpha_prime)
        beta = F.softplus(beta_prime) - alpha
        log_det = torch.zeros(())
        for step in range(centers.shape[-2]):
            away = z - centers[..., step, :]
            a, b = alpha[..., step], beta[..., step]
            r = away.norm(dim=-1)
            h = 1 / (a + r)
            z = z + (b * h).unsqueeze(-1) * away
            log_det = (
                log_det
                + (self.features - 1) * torch.log1p(b * h)
                + torch.log1p(b * h - b * r * h.square())
            )
        return z, log_det

    def log_prob(self, z: Tensor) -> Tensor:
        """Return the log density of each class, shape (n, C), of features (n, d)."""
        every = torch.arange(self.num_classes, device=z.device)
        return self._log_normal(*self.flow(z.unsqueeze(-2), every))

    def log_prob_of(self, z: Tensor, labels: Tensor, constant: bool = False) -> Tensor:
        """Return the log density of each example's own class; see :class:`ClassDensities`."""
        return self._log_normal(*self.flow(z, labels, constant))

    def _log_normal(self, z: Tensor, log_det: Tensor) -> Tensor:
        at_zero = 0.5 * self.features * math.log(2 * math.pi)
        return log_det - 0.5 * z.square().sum(dim=-1) - at_zero


class GaussianClasses(ClassDensities):
    r"""A Gaussian with diagonal covariance for each class, set from the features of a turn.

    Nothing here is trained: after every step, mean and variance are those of the features that the
    turn has seen so far, the unbiased variance plus :math:`10^{-5}`. A class without features has
    mean 0 and variance 1, one with a single one its features and variance 1.

    What is stored, and averaged over clients, is linear: each class's share s of the examples,
    :math:`s \mu` and :math:`s (\sigma^2 + \mu^2)`. So a mean over clients by their examples is the
    mixture of their distributions, and clients without a class count nothing in it, whereas
    averages of means and deviations are pulled to where they start.

    Args:
        num_classes: C.
        features: d.

    Attributes:
        share: s, shape (C,).
        first: :math:`s \mu`, shape (C, d).
        second: :math:`s (\sigma^2 + \mu^2)`, shape (C, d).

    Example:
        >>> density = GaussianClasses(num_classes=2, features=1)
        >>> density.start()
        >>> density.observe(torch.tensor([[1.0], [3.0]]), torch.tensor([0, 0]))
        >>> density.settle()
        >>> [moment.squeeze(1).tolist() for moment in density.moments()]
        [[2.0, 0.0], [2.0, 1.0]]
    """

    SPREAD = 1e-5

    share: Tensor
    first: Tensor
    second: Tensor

    def __init__(self, num_classes: int, features: int) -> None:
        super().__init__(num_classes, features)
        self.register_buffer("share", torch.zeros(num_classes))
        self.register_buffer("first", torch.zeros(num_classes, features))
        self.register_buffer("second", torch.zeros(num_classes, features))
        self._seen: ClassSums | None = None

    def reset_parameters(self) -> None:
        """Forget all features."""
        super().reset_parameters()
        for buffer in (self.share, self.first, self.second):
            buffer.zero_()

    def start(self) -> None:
        """Begin a turn; until its first step the densities are those that came."""
        self._seen = None

    @torch.no_grad()
    def observe(self, z: Tensor, labels: Tensor) -> None:
        """Take features in."""
        if self._seen is None:
            self._seen = ClassSums.zeros(self.num_classes, self.features, z.device)
        self._seen.add(z, labels)

    @torch.no_grad()
    def settle(self) -> None:
        """Set the densities from the features of the turn."""
        if self._seen is None:
            return
        number = self._seen.count.unsqueeze(1)
        mean, variance = self._seen.moments()
        several = number > 1
        unbiased = variance * number / torch.where(several, number - 1, torch.ones_like(number))
        variance = torch.where(several, unbiased, torch.ones_like(variance))
        share = number / number.sum().clamp(min=1)
        self.share.copy_(share.squeeze(1))
        self.first.copy_(share * mean)
        self.second.copy_(share * (variance + mean.square()))

    def moments(self) -> tuple[Tensor, Tensor]:
        """Return means and variances, shapes (C, d)."""
        share = self.share.unsqueeze(1)
        present = share > 0
        divisor = torch.where(present, share, torch.ones_like(share))
        mean = self.first / divisor
        variance = (self.second / divisor - mean.square()).clamp(min=0)
        return mean, torch.where(present, variance, torch.ones_like(variance))

    def log_prob(self, z: Tensor) -> Tensor:
        """Return the log density of each class, shape (n, C), of features (n, d)."""
        mean, variance = self.moments()
        return self._log_normal(z.unsqueeze(-2), mean, variance)

    def log_prob_of(self, z: Tensor, labels: Tensor, constant: bool = False) -> Tensor:
        """Return the log density of each example's own class; see :class:`ClassDensities`."""
        mean, variance = self.moments()
        return self._log_normal(z, mean[labels], variance[labels])

    def _log_normal(self, z: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        spread = variance + self.SPREAD
        terms = (z - mean).square() / spread + spread.log() + math.log(2 * math.pi)
        return -0.5 * terms.sum(dim=-1)
