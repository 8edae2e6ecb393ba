"""FedDF: the server distils the clients' ensemble into the merged model, on public inputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedlightning.algorithms.algorithm import Algorithm
from fedlightning.algorithms.method import Aggregation, ClientHook
from fedlightning.core.batches import inputs_of
from fedlightning.core.divergence import softmax_divergence
from fedlightning.core.module_snapshot import eval_mode
from fedlightning.core.state import State
from fedlightning.core.validation import check_integer, check_number
from fedlightning.errors import ConfigError

__all__ = ["EnsembleDistillation", "FedDF"]


class EnsembleDistillation(ClientHook):
    """Trains the merged model towards the clients' mean logits.

    Its arguments are those of :class:`FedDF`.
    """

    needs_public = True
    needs_states = True

    def __init__(self, epochs: int, server_lr: float, batch_size: int) -> None:
        self.epochs = check_integer("algorithm.epochs", epochs, at_least=0)
        self.server_lr = float(check_number("algorithm.server_lr", server_lr, above=0))
        self.batch_size = check_integer("algorithm.batch_size", batch_size, at_least=1)

    def on_merge(self, aggregation: Aggregation) -> State:
        """Return the student's weights.

        Raises:
            ConfigError: If the server has no network and no public examples.
        """
        side, merged = aggregation.side, aggregation.merged
        if side is None:
            raise ConfigError("FedDF needs a server that has the module and public examples.")
        if not self.epochs:
            return {}
        module, key = side.module, side.key
        x = torch.cat([inputs_of(batch) for batch in side.public_batches()])
        with eval_mode(module):
            with torch.no_grad():
                teachers = [_logits(module, {**side.model, **state}, x)
                            for state in aggregation.states]  # fmt: skip
                target = torch.stack(teachers).mean(dim=0)
            names = [name for name, _ in module.named_parameters() if name in merged]
            student = {name: merged[name].clone().requires_grad_() for name in names}
            optimizer = torch.optim.Adam(student.values(), lr=self.server_lr)
            with torch.enable_grad():
                for epoch in range(self.epochs):
                    order = torch.randperm(len(x), generator=key.at(epoch=epoch).torch())
                    for rows in torch.split(order.to(x.device), self.batch_size):
                        optimizer.zero_grad()
                        own = _logits(module, {**side.model, **merged, **student}, x[rows])
                        torch.autograd.backward(softmax_divergence(target[rows], own))
                        optimizer.step()
        return {name: value.detach() for name, value in student.items()}


class FedDF(Algorithm):
    r"""Federated distillation for robust model fusion.

    Clients train and send as in FedAvg. The server starts a student from the merged model
    :math:`x_0 = \sum_k p_k \theta_k` and trains it on public inputs :math:`d` by

    .. math:: \mathrm{KL}\left(\mathrm{softmax}\Big(\frac{1}{|S|} \sum_{k \in S}
        f(\theta_k, d)\Big) \,\Big\|\, \mathrm{softmax}(f(x, d))\right)

    with Adam; the student is the next global model. Labels of public examples are not looked at.
    The data has such examples (:class:`~fedlightning.datamodules.PublicShare`). All networks are
    in eval mode and alike; the server holds the round's updates in memory.

    The paper takes up to 10,000 steps with a learning rate that is annealed to zero, and stops by
    the loss on validation data; here it is ``epochs`` passes at a constant rate. With no pass it is
    FedAvg. Where clients have few classes each, the ensemble predicts worse than the merged model,
    and many passes make the student as bad as its teacher.

    Args:
        epochs: Passes over the public examples in each round.
        server_lr: Learning rate of Adam; 0.001 in the paper.
        batch_size: Public examples in a step; 128 in the paper.
        **choices: Those of :class:`Algorithm`.

    Raises:
        ConfigError: If a number is out of its range.

    Source:
        Lin, Kong, Stich, Jaggi. Ensemble Distillation for Robust Model Fusion in Federated
        Learning. NeurIPS 2020. https://arxiv.org/abs/2006.07242

    Example:
        >>> FedDF(epochs=3).share
        'full'
    """

    def __init__(
        self, epochs: int = 5, server_lr: float = 1e-3, batch_size: int = 128, **choices: Any
    ) -> None:
        super().__init__(local=[EnsembleDistillation(epochs, server_lr, batch_size)], **choices)


def _logits(module: nn.Module, state: State, x: Tensor) -> Tensor:
    logits: Tensor = functional_call(module, state, (x,))
    return logits
