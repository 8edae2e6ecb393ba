"""FedMD: clients of unlike architectures learn from their mean logits on public examples."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fedlightning.algorithms.algorithm import Algorithm
from fedlightning.algorithms.method import Aggregation, ClientHook
from fedlightning.core.batches import inputs_of
from fedlightning.core.divergence import softmax_divergence
from fedlightning.core.messages import Down, Up
from fedlightning.core.seeding import Key
from fedlightning.core.state import State
from fedlightning.core.validation import check_integer, check_number
from fedlightning.errors import ConfigError

if TYPE_CHECKING:
    from fedlightning.algorithms.context import ClientContext

__all__ = ["Consensus", "FedMD"]

_NAME = "fedmd"


class Consensus(ClientHook):
    """Trains on public examples towards the clients' mean logits before each local training.

    Args:
        epochs: Passes over the public examples.
        labels: Weight of the cross-entropy with the public labels.
        batch_size: Public examples in a step.
    """

    messages = (Down(_NAME), Up(_NAME, merge="mean"))
    needs_global = False
    needs_public = True

    def __init__(self, epochs: int = 1, labels: float = 1.0, batch_size: int = 32) -> None:
        self.epochs = check_integer("algorithm.public_epochs", epochs, at_least=0)
        self.labels = float(check_number("algorithm.public_labels", labels, at_least=0))
        self.batch_size = check_integer("algorithm.public_batch_size", batch_size, at_least=1)

    def on_epoch_start(self, context: ClientContext, epoch: int) -> None:
        """Take up the consensus before the first local epoch."""
        if epoch == 0 and self.epochs:
            consensus = context.received_value(_NAME)
            if consensus is not None or self.labels:
                self._digest(context, consensus)

    def on_update_end(self, context: ClientContext) -> None:
        """Send the logits of the public examples."""
        with context.evaluating():
            logits = [_logits(context, inputs_of(batch)) for batch in context.public_batches()]
        context.send_extra(_NAME, torch.cat(logits))

    def on_aggregate(self, aggregation: Aggregation) -> State:
        """Return the mean logits, which are the next consensus."""
        return {_NAME: aggregation.extras[_NAME]}

    def loss(self, logits: Tensor, consensus: Tensor | None, labels: Tensor | None) -> Tensor:
        """Return the loss of some public examples.

        Args:
            logits: The client's, shape (n, C).
            consensus: The mean logits of these examples, shape (n, C), where there are some yet.
            labels: Their classes, shape (n,), where they count.
        """
        total = logits.new_zeros(())
        if consensus is not None:
            total = total + softmax_divergence(consensus, logits)
        if labels is not None:
            total = total + self.labels * F.cross_entropy(logits, labels)
        return total

    def _digest(self, context: ClientContext, consensus: Tensor | None) -> None:
        batches = list(context.public_batches())
        x = torch.cat([inputs_of(batch) for batch in batches])
        y = torch.cat([_classes(batch) for batch in batches]) if self.labels else None
        if consensus is not None and len(consensus) != len(x):
            raise ConfigError(
                f"the consensus is of {len(consensus)} public examples, and there are {len(x)}; "
                "they must not change."
            )
        optimizer = context.optimizer_like(context.parameters)
        optimizer.follow()
        key = Key(context.key.seed, "public", round=context.round, client=context.client)
        for epoch in range(self.epochs):
            order = torch.randperm(len(x), generator=key.at(epoch=epoch).torch()).to(x.device)
            for rows in torch.split(order, self.batch_size):
                target = consensus[rows] if consensus is not None else None
                classes = y[rows] if y is not None else None
                optimizer.zero_grad()
                torch.autograd.backward(self.loss(_logits(context, x[rows]), target, classes))
                optimizer.optimizer.step()
        optimizer.zero_grad()


class FedMD(Algorithm):
    r"""Model distillation: networks may differ by client, and nothing is averaged but logits.

    A client's turn: it trains ``public_epochs`` passes over the public examples on
    :math:`\mathrm{KL}(\mathrm{softmax}(\bar z(x)) \,\|\, \mathrm{softmax}(z_k(x)))` plus
    ``public_labels`` times the cross-entropy with their labels (in the first turn, without a
    consensus :math:`\bar z`, the latter alone), then its local epochs on its own examples, and
    sends its logits :math:`z_k` of the public examples. The server takes the plain mean over the
    round's clients as the next :math:`\bar z`. Clients keep their networks. With
    ``public_epochs=0`` it is local training.

    The data has public examples (:class:`~fedlightning.datamodules.PublicShare`); networks that
    differ by client are a :class:`~fedlightning.models.MixedModule`, and others work as well. The
    optimizer's settings are the module's, without clipping or mixed precision in the public steps.

    Deviations: after the published description. The divergence is a choice made here, as are
    labels in every turn rather than only before the first, and all public examples in each round
    rather than a sample.

    What can be said: this is distillation in the manner of FedMD. In small experiments most clients
    gained over local training, and much of it came from the public labels, which local training can
    use as well. The paper's results are not claimed.

    Args:
        public_epochs: Passes over the public examples in each turn.
        public_labels: Weight of their labels; 0 for public examples without classes.
        public_batch_size: Public examples in a step.
        **choices: Those of :class:`Algorithm`.

    Raises:
        ConfigError: If a number is out of its range.

    Example:
        >>> FedMD(public_labels=0.0).share
        'none'

    Source:
        Li, Wang. FedMD: Heterogenous Federated Learning via Model Distillation. NeurIPS workshop on
        Federated Learning 2019. https://arxiv.org/abs/1910.03581
    """

    def __init__(
        self,
        public_epochs: int = 1,
        public_labels: float = 1.0,
        public_batch_size: int = 32,
        **choices: Any,
    ) -> None:
        hook = Consensus(public_epochs, public_labels, public_batch_size)
        super().__init__(train="full", share="none", keep=True, local=[hook], **choices)


def _classes(batch: Any) -> Tensor:
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        y = batch[1]
        if isinstance(y, Tensor) and y.ndim == 1 and not y.is_floating_point():
            return y
    raise ConfigError(
        "algorithm.public_labels > 0 needs public batches (inputs, labels) with one class per "
        "example; set it to 0."
    )


def _logits(context: ClientContext, x: Any) -> Tensor:
    logits = context.module(x)
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        raise ConfigError(
            f"FedMD needs logits of shape (examples, classes), and "
            f"{type(context.module).__name__} returns something else."
        )
    return logits
