"""Carries estimates through one local step of a client."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fedlightning.algorithms.context import ClientContext
from fedlightning.callbacks.influence.estimates import Method
from fedlightning.core.batches import Batch, batch_length, one_example
from fedlightning.core.curvature import (
    fisher_step,
    gradients_with_graph,
    hessian_step,
    layer_step,
)
from fedlightning.core.state import State
from fedlightning.engine.steps import loss_of, with_index
from fedlightning.errors import ConfigError

__all__ = ["carry_through"]


def carry_through(
    context: ClientContext,
    batch: Batch,
    loss: Tensor,
    directions: Sequence[State],
    method: Method,
    fisher_examples: int,
) -> None:
    """Take directions through the step that the client is about to make; nothing else changes.

    Args:
        context: The client update; its module is where the step starts.
        batch: The batch.
        loss: Its loss, with a graph.
        directions: Vectors over the parameters, changed in place.
        method: How the loss's curvature is known.
        fisher_examples: The most examples whose gradients stand for it.

    Raises:
        ConfigError: An operation of the module has no second derivative, or the gradient of a
            single example cannot be computed.
    """
    parameters = context.parameters
    lrs = _learning_rates(context)
    name = type(context.module).__name__
    if method == "fisher":
        try:
            gradients = _single_gradients(context, batch, fisher_examples)
        except RuntimeError as error:
            raise ConfigError(_no_way(name, "gradient of a single example", error)) from error
        except ValueError as error:  # BatchNorm
            raise ConfigError(_no_way(name, "gradient of a single example", error)) from error
        fisher_step(gradients, directions, lrs)
        return
    step = layer_step if method == "layerwise" else hessian_step
    try:
        step(gradients_with_graph(loss, parameters), parameters, directions, lrs)
    except RuntimeError as error:
        raise ConfigError(_no_way(name, "second derivative", error)) from error


def _learning_rates(context: ClientContext) -> dict[str, float]:
    """Return the present learning rate of each parameter that the optimizer moves."""
    keys = {id(parameter): key for key, parameter in context.parameters.items()}
    return {
        keys[id(parameter)]: float(group["lr"])
        for group in context.optimizer.param_groups
        for parameter in group["params"]
        if id(parameter) in keys
    }


def _single_gradients(context: ClientContext, batch: Batch, most: int) -> State:
    """Return gradients of the first examples of a batch, whose order is random, shape (n, ...)."""
    count = min(batch_length(batch), most)
    parameters = list(context.parameters.values())
    rows: list[Sequence[Tensor | None]] = []
    steps = _TrainingStep(context.module)
    with context.no_logging(), context.replay_rng(), torch.enable_grad():
        for index in range(count):
            # in other buffers: those of the module are part of the graph of the whole batch
            buffers = {f"module.{k}": b.clone() for k, b in context.module.named_buffers()}
            loss = torch.func.functional_call(steps, buffers, (one_example(batch, index),))
            if loss is not None and loss.requires_grad:
                rows.append(torch.autograd.grad(loss, parameters, allow_unused=True))
    return {
        key: torch.stack([_or_zeros(row[at], parameters[at]) for row in rows])
        for at, key in enumerate(context.parameters)
        if any(row[at] is not None for row in rows)
    }


def _or_zeros(value: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if value is None else value


class _TrainingStep(nn.Module):
    """A module's training step, as something that can be called with other buffers."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, batch: Batch) -> Tensor | None:
        """Return the loss of a batch."""
        module = self.module
        return loss_of(with_index(module.training_step)(batch, 0), module)  # type: ignore[arg-type]


def _no_way(module: str, what: str, error: Exception) -> str:
    reason = str(error).partition("\n")[0]
    return (
        f"ClientInfluence: the {what} of {module} cannot be computed: {reason}; take "
        "method='truncated', or other layers."
    )
