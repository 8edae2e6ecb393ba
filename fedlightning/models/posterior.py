"""A posterior network: classes with the evidence for them, from a density of features."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedlightning.core.dirichlet import (
    dirichlet_parameters,
    expected_log_likelihood,
    log_evidence,
)
from fedlightning.core.validation import check_integer, check_number
from fedlightning.errors import ConfigError, did_you_mean
from fedlightning.models.base import FederatedModule
from fedlightning.models.densities import ClassDensities, GaussianClasses, RadialFlows

__all__ = ["Posterior", "PosteriorNetwork", "posterior_loss"]


class Posterior(NamedTuple):
    """What the network says of n inputs.

    Args:
        alpha: Dirichlet parameters, shape (n, C).
        log_alpha: Their logarithms, the network's logits.
        evidence: Log evidence, not clamped, shape (n,).
    """

    alpha: Tensor
    log_alpha: Tensor
    evidence: Tensor


def posterior_loss(
    probabilities: Tensor, evidence: Tensor, likelihood: Tensor, labels: Tensor, weight: float
) -> Tensor:
    r"""Return :math:`-(\psi(\alpha_y) - \psi(\alpha_0)) - \lambda \ell` of each example.

    Args:
        probabilities: q, shape (n, C).
        evidence: :math:`\ell` of the first term, shape (n,).
        likelihood: :math:`\ell` of the second, which may have other gradients.
        labels: y, shape (n,).
        weight: :math:`\lambda`.
    """
    alpha = dirichlet_parameters(probabilities, evidence)
    return -expected_log_likelihood(alpha, labels) - weight * likelihood


class PosteriorNetwork(FederatedModule):
    r"""Encoder z = f(x), a head for the classes, and a density of z for each class.

    With q the head's probabilities and the log evidence :math:`\ell = \text{clamp}(\log p(z) +
    \frac{d}{2} \log 4 \pi, -50, 50)`, the Dirichlet parameters are
    :math:`\alpha = 1 + q e^\ell`. In training p(z) is the density of the true class, and the loss
    of an example :math:`-(\psi(\alpha_y) - \psi(\alpha_0)) - \lambda \ell`; in the first term the
    density's parameters are constants, z is not. Otherwise p(z) is the mixture of all classes with
    the frequencies :attr:`ClassDensities.prior`. The outputs are :math:`\log \alpha`, so their
    softmax is the expected distribution :math:`\alpha / \alpha_0`.

    Body is the encoder, head the multilayer perceptron d, 3 d, C; the density is a part of its own.
    The optimizer is Adam.

    Args:
        in_features: Numbers per example, for the encoder that is built here.
        hidden: Widths of its hidden layers.
        num_classes: C.
        features: d.
        density: ``radial`` (:class:`RadialFlows`) or ``gaussian`` (:class:`GaussianClasses`).
        transforms: Length of the chains of radial transforms.
        likelihood_weight: :math:`\lambda`; the authors take 0.01, and 0.001 for MNIST. The term
            also draws features together: with 0.01 and Gaussian densities, on the embedded digits,
            all inputs came to have the same features; with 0.001 not.
        stop_gradient: Whether the density's parameters are constants in the first term.
        encoder: An encoder of one's own, (n, ...) to (n, d), instead of the perceptron.
        lr: Learning rate of Adam.
        **kwargs: Arguments of :class:`FederatedModule`.

    Raises:
        ConfigError: If a value is out of its range.

    Example:
        >>> net = PosteriorNetwork(in_features=64, features=8, density="gaussian")
        >>> net(torch.rand(5, 1, 8, 8)).shape, sorted(net.parts)
        (torch.Size([5, 10]), ['density'])

    Source:
        Kotelevskii, Horváth, Nandakumar, Takáč, Panov. Dirichlet-based Uncertainty Quantification
        for Personalized Federated Learning with Improved Posterior Networks. IJCAI 2024.
        https://arxiv.org/abs/2312.11230, after the authors' code.
    """

    density: ClassDensities

    def __init__(
        self,
        in_features: int = 64,
        hidden: Sequence[int] = (64,),
        num_classes: int = 10,
        features: int = 16,
        density: Literal["radial", "gaussian"] = "radial",
        transforms: int = 30,
        likelihood_weight: float = 0.01,
        stop_gradient: bool = True,
        encoder: nn.Module | None = None,
        lr: float = 1e-3,
        **kwargs: Any,
    ) -> None:
        super().__init__(lr=lr, **{"parts": {"density": "density"}, **kwargs})
        for name, value in (("in_features", in_features), ("num_classes", num_classes)):
            check_integer(name, value, at_least=1)
        for width in (*hidden, features):
            check_integer("hidden and features", width, at_least=1)
        check_number("likelihood_weight", likelihood_weight, at_least=0)
        self.save_hyperparameters(ignore=["encoder"])
        self.num_classes = num_classes
        self.likelihood_weight = likelihood_weight
        self.stop_gradient = stop_gradient
        self.body = encoder if encoder is not None else _perceptron(in_features, hidden, features)
        self.head = nn.Sequential(
            nn.Linear(features, 3 * features), nn.ReLU(), nn.Linear(3 * features, num_classes)
        )
        if density == "radial":
            self.density = RadialFlows(num_classes, features, transforms)
        elif density == "gaussian":
            self.density = GaussianClasses(num_classes, features)
        else:
            raise ConfigError(
                f"density must be radial or gaussian, got {density!r}."
                f"{did_you_mean(str(density), ['radial', 'gaussian'])}"
            )

    def posterior(self, x: Tensor) -> Posterior:
        """Return Dirichlet parameters and evidence of inputs, by the mixture of all classes."""
        z = self.body(x)
        log_q = self.head(z).log_softmax(dim=-1)
        log_prob = self.density.log_mixture(z)
        evidence = log_evidence(log_prob, self.density.features)
        log_alpha = F.softplus(log_q + evidence.unsqueeze(-1))
        alpha = dirichlet_parameters(log_q.exp(), evidence)
        return Posterior(
            alpha, log_alpha, log_evidence(log_prob, self.density.features, clamped=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        r"""Return :math:`\log \alpha`, shape (batch, classes)."""
        return self.posterior(x).log_alpha

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the mean loss of a batch; its features are seen by the density."""
        z = self.body(x)
        probabilities = self.head(z).softmax(dim=-1)
        log_prob = self.density.log_prob_of(z, y)
        still = self.density.log_prob_of(z, y, constant=True) if self.stop_gradient else log_prob
        evidence, likelihood = (
            log_evidence(value, self.density.features) for value in (still, log_prob)
        )
        self.density.observe(z.detach(), y)
        return posterior_loss(probabilities, evidence, likelihood, y, self.likelihood_weight).mean()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the mean loss of one local batch ``(x, y)``."""
        x, y = batch
        loss = self.loss(x, y)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(y))
        return loss

    def on_train_start(self) -> None:
        """Begin a client's turn."""
        self.density.start()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Let a density that is not trained follow."""
        self.density.settle()

    def configure_optimizers(self) -> Any:
        """Return Adam over the trainable parameters."""
        trainable = [parameter for parameter in self.parameters() if parameter.requires_grad]
        if not trainable:
            raise ConfigError(f"{type(self).__name__} has no trainable parameters.")
        return torch.optim.Adam(trainable, lr=self.lr)

    def reset_personal(self, frequencies: Tensor) -> None:
        """Draw head and density anew, each by its layers' own rule, for one client.

        Args:
            frequencies: How frequent the classes are at the client, shape (C,).
        """
        for layer in self.head.modules():
            if isinstance(layer, nn.Linear):
                layer.reset_parameters()
        self.density.reset_parameters()
        self.density.prior.copy_(frequencies)


def _perceptron(in_features: int, hidden: Sequence[int], features: int) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in pairwise([in_features, *hidden]):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear([in_features, *hidden][-1], features))
