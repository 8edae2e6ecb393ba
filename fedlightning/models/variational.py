"""Classifiers with a head for all and a local head that is made of a client's examples."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedlightning.core.gaussian import DiagonalGaussian
from fedlightning.core.validation import check_integer, check_number
from fedlightning.errors import ConfigError
from fedlightning.models.base import FederatedModule

__all__ = ["PosteriorConstructor", "VariationalMLP", "VariationalModule"]


class PosteriorConstructor(nn.Module):
    """Makes the posterior of a local head from a support set, class by class.

    A perceptron turns the mean embedding of a class and the logarithm of one plus its number of
    examples into what is added to the class's row of the prior, mean and scale. The order of the
    examples does not matter, and a class without examples has the prior. At first nothing is added.

    Args:
        features: Numbers E per embedding.
        hidden: Width of the hidden layer.
    """

    def __init__(self, features: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(features + 1, hidden), nn.ReLU(), nn.Linear(hidden, 2 * features)
        )
        for parameter in self.layers[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(
        self, embeddings: Tensor, labels: Tensor, num_classes: int
    ) -> tuple[Tensor, Tensor]:
        """Return what to add to the prior's means and to its scales before softplus.

        Args:
            embeddings: Of the support set, shape (n, E).
            labels: Its classes, int64, shape (n,).
            num_classes: Number C of classes.

        Returns:
            Two tensors of shape (C, E), zero in the rows of absent classes.
        """
        members = F.one_hot(labels, num_classes).to(embeddings.dtype)
        counts = members.sum(dim=0).unsqueeze(1)
        means = members.T @ embeddings / counts.clamp(min=1)
        added = self.layers(torch.cat([means, counts.log1p()], dim=1)) * (counts > 0)
        mean, scale = added.chunk(2, dim=1)
        return mean, scale


class VariationalModule(FederatedModule):
    r"""A body with embedding :math:`e`, a global head :math:`G`, a local head :math:`b`.

    Logits are :math:`G e + b e`. The local head has a prior :math:`N(m, s^2)`, learned with the
    rest, and for a support set a posterior (:class:`PosteriorConstructor`). The forward pass takes
    the local head of :meth:`with_local_head`, and without one the prior's mean. A subclass sets
    ``body`` and ``head``, one linear layer, then calls :meth:`build_posterior`.

    Args:
        **kwargs: Arguments of :class:`FederatedModule`.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._local_head: list[Tensor] = []

    def build_posterior(self, hidden: int = 64, prior_std: float = 0.1) -> None:
        """Make constructor and prior.

        Args:
            hidden: Width of the constructor's hidden layer.
            prior_std: The prior's standard deviation at first; its mean is 0.

        Raises:
            ConfigError: If a number is out of its range, or the head is not one linear layer.
        """
        check_integer("constructor_hidden", hidden, at_least=1)
        check_number("prior_std", prior_std, above=0)
        head = self.head
        if not isinstance(head, nn.Linear):
            raise ConfigError(
                f"a local head is added to a head that is one nn.Linear, and that of "
                f"{type(self).__name__} is {type(head).__name__}."
            )
        weight = head.weight
        self.constructor = PosteriorConstructor(weight.shape[1], hidden)
        self.prior_mean = nn.Parameter(torch.zeros_like(weight))
        self.prior_scale = nn.Parameter(torch.full_like(weight, math.log(math.expm1(prior_std))))

    @property
    def prior(self) -> DiagonalGaussian:
        """The prior of a local head, (C, E)."""
        return DiagonalGaussian(self.prior_mean, F.softplus(self.prior_scale))

    def posterior(self, x: Tensor, y: Tensor) -> DiagonalGaussian:
        """Return the posterior of the local head given a support set, (C, E).

        Args:
            x: The inputs of the support set, shape (n, ...).
            y: Its classes, int64, shape (n,).
        """
        embeddings = self.body(x)  # type: ignore[operator]
        mean, scale = self.constructor(embeddings, y, len(self.prior_mean))
        return DiagonalGaussian(self.prior_mean + mean, F.softplus(self.prior_scale + scale))

    @contextmanager
    def with_local_head(self, local_head: Tensor) -> Iterator[None]:
        """Let the forward pass take this local head, (C, E), inside the ``with`` block."""
        self._local_head.append(local_head)
        try:
            yield
        finally:
            self._local_head.pop()

    def forward(self, x: Tensor) -> Tensor:
        """Return logits of shape (batch, C)."""
        embeddings = self.body(x)  # type: ignore[operator]
        local_head = self._local_head[-1] if self._local_head else self.prior_mean
        logits: Tensor = self.head(embeddings) + F.linear(embeddings, local_head)  # type: ignore[operator]
        return logits


class VariationalMLP(VariationalModule):
    """Flattened inputs, hidden layers with ReLU, a global and a local linear head.

    Args:
        in_features: Numbers per example; 64 for the 8x8 digits.
        hidden: Widths of the hidden layers, at least one.
        num_classes: Number of classes.
        constructor_hidden: Width of the constructor's hidden layer.
        prior_std: The prior's standard deviation at first.
        **kwargs: Arguments of :class:`FederatedModule`.

    Example:
        >>> net = VariationalMLP(in_features=64, hidden=[16])
        >>> x, y = torch.rand(5, 1, 8, 8), torch.tensor([3, 3, 1, 1, 1])
        >>> net.posterior(x, y).kl(net.prior).item()
        0.0
    """

    def __init__(
        self,
        in_features: int = 64,
        hidden: Sequence[int] = (64,),
        num_classes: int = 10,
        constructor_hidden: int = 64,
        prior_std: float = 0.1,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        for width in (in_features, *hidden):
            check_integer("in_features and hidden", width, at_least=1)
        check_integer("num_classes", num_classes, at_least=1)
        self.save_hyperparameters()
        layers: list[nn.Module] = [nn.Flatten()]
        for inputs, outputs in pairwise([in_features, *hidden]):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(hidden[-1], num_classes)
        self.build_posterior(constructor_hidden, prior_std)
