"""FedVI: a client's local head is inferred from a few of its examples; nothing is kept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fedlightning.algorithms.algorithm import Algorithm
from fedlightning.algorithms.method import ClientHook
from fedlightning.core.batches import Batch, class_labels
from fedlightning.core.predictors import Predictor
from fedlightning.core.state import State
from fedlightning.core.validation import check_number
from fedlightning.errors import ConfigError

if TYPE_CHECKING:
    from fedlightning.algorithms.context import ClientContext

__all__ = ["AmortizedHead", "FedVI", "LocalHeadPredictor"]

_NAME = "fedvi"


class LocalHeadPredictor:
    """The global network with a client's local head.

    Args:
        module: The network (:class:`~fedlightning.models.VariationalModule`).
        local_head: The mean of the client's posterior, shape (C, E).
    """

    def __init__(self, module: nn.Module, local_head: Tensor) -> None:
        self._module = module
        self._local_head = local_head

    def predict(self, inputs: Any) -> Any:
        """Return the logits of both heads together."""
        device = next(self._module.parameters()).device
        with _variational(self._module).with_local_head(self._local_head.to(device)):
            return self._module(inputs)

    def state_dict(self) -> State:
        """Return the local head."""
        return {_NAME: self._local_head}


class AmortizedHead(ClientHook):
    """Trains what makes local heads: each batch is a support set and the queries that it serves.

    Args:
        tau: Weight of the divergence from the prior.
        support: Share of each batch that is the support set, in [0, 1); the others, at least one,
            are the queries. Without support the posterior is the prior.
        sampled: Whether the local head is drawn from its posterior in training, or its mean.
    """

    stateless = True

    def __init__(self, tau: float = 1e-3, support: float = 0.5, sampled: bool = True) -> None:
        self.tau = float(check_number("algorithm.tau", tau, at_least=0))
        self.support = float(check_number("algorithm.support", support, at_least=0, below=1))
        self.sampled = sampled

    def on_update_start(self, context: ClientContext) -> None:
        """See whether the module can have local heads."""
        _variational(context.module)

    def local_step(self, context: ClientContext, batch: Batch, batch_idx: int) -> Tensor | None:
        """Infer a local head from the support set; train on the queries, with all gradients."""
        module = _variational(context.module)
        (x, y), size = _examples(batch), self.support_size(len(batch[1]))
        prior = module.prior
        posterior = module.posterior(x[:size], y[:size]) if size else prior
        noise = self.noise(posterior.mean) if self.sampled else None
        local_head = posterior.mean if noise is None else posterior.sample(noise)
        context.scratch[_NAME] = posterior, prior
        with module.with_local_head(local_head):
            loss = context.gradient((x[size:], y[size:]), batch_idx)
        context.update(batch_idx)
        return loss

    def on_loss(self, context: ClientContext, batch: Batch, loss: Tensor) -> Tensor:
        """Add the divergence of the posterior from the prior."""
        posterior, prior = context.scratch[_NAME]
        total: Tensor = loss + self.tau * posterior.kl(prior)
        return total

    def support_size(self, examples: int) -> int:
        """Return how many of a batch's examples are the support set: the first ones."""
        return min(round(self.support * examples), examples - 1)

    def noise(self, like: Tensor) -> Tensor:
        """Return standard normal numbers for a sample, of the shape of ``like``."""
        return torch.randn_like(like)

    @torch.no_grad()
    def adapt(self, batches: Iterable[Batch], module: nn.Module) -> State:
        """Return the mean of the posterior given all of a client's training examples."""
        pairs = [_examples(batch) for batch in batches]
        if not pairs:
            return {}
        x, y = (torch.cat(part) for part in zip(*pairs, strict=True))
        return {_NAME: _variational(module).posterior(x, y).mean}

    def predictor(self, kept: Mapping[str, Tensor], module: nn.Module) -> Predictor | None:
        """Return the network with the local head."""
        return LocalHeadPredictor(module, kept[_NAME]) if _NAME in kept else None


class FedVI(Algorithm):
    r"""Federated variational inference: stateless personalization, also of clients never seen.

    A body gives embeddings :math:`e`, a global head :math:`G` and a local head :math:`b` make the
    logits :math:`(G + b) e` (:class:`~fedlightning.models.VariationalModule`). In a local step a
    batch is split into support and queries, which are disjoint; a constructor makes the posterior
    :math:`q = N(\mu, \varsigma^2)` of the support set, :math:`b = \mu + \varsigma \epsilon` with
    :math:`\epsilon \sim N(0, I)`, and the loss is the mean cross-entropy of the queries plus
    :math:`\tau\, \mathrm{KL}(q \,\|\, N(m, s^2))`. All parameters, the prior's included, are
    trained, sent and averaged. Clients keep nothing, which is enforced: what would keep something
    is refused.

    To predict, a client passes its labelled training examples through the network once, without
    training, and takes :math:`b = \mu`. ``PersonalizationCallback(epochs=0)`` measures and saves
    that, for held-out clients (``data.held_out_clients``) too. Without a support set the network
    predicts with the prior's mean.

    Deviations: after the published description, in which the outputs of a global and a local model
    are combined; that they are added, the objective's weight and the constructor are choices made
    here, and the paper's text was not available.

    What can be said: this is amortized variational personalization after FedVI's published
    description, with an objective and a constructor of its own. The paper's results on FEMNIST and
    CIFAR-100 are not claimed.

    Args:
        tau: :math:`\tau`.
        support: Share of each batch that is the support set.
        sampled: Whether :math:`b` is drawn in training; false takes the mean.
        **choices: Those of :class:`Algorithm`.

    Raises:
        ConfigError: If a number is out of its range.

    Source:
        Vedadi, Dillon, Mansfield, Singhal, Afkanpour, Morningstar. Federated Variational Inference:
        Towards Improved Personalization and Generalization. AAAI Federated Learning on the Edge
        symposium 2024. https://arxiv.org/abs/2305.13672
    """

    def __init__(
        self, tau: float = 1e-3, support: float = 0.5, sampled: bool = True, **choices: Any
    ) -> None:
        super().__init__(local=[AmortizedHead(tau, support, sampled)], **choices)


def _variational(module: nn.Module) -> Any:
    """Return a module that can have local heads.

    Raises:
        ConfigError: If it cannot.
    """
    if all(hasattr(module, name) for name in ("posterior", "prior", "with_local_head")):
        return module
    raise ConfigError(
        f"FedVI needs a network that makes local heads, and {type(module).__name__} does not; take "
        "VariationalMLP, or derive from VariationalModule (fedlightning.models)."
    )


def _examples(batch: Any) -> tuple[Tensor, Tensor]:
    labels = class_labels(batch, "FedVI")
    return batch[0], labels
