"""What the estimates will cost, in words, before the first round."""

from __future__ import annotations

from fedlightning.callbacks.influence.estimates import Method
from fedlightning.datamodules import FederatedDataModule
from fedlightning.engine.loop import FederatedLoop

__all__ = ["batches_are_stochastic", "describe_cost"]

_LOOKED_AT = 100


def describe_cost(
    loop: FederatedLoop, method: Method, clients: int, layers: int, size: int, width: int,
    fisher_examples: int,
) -> str:  # fmt: skip
    """Return memory and number of products.

    Args:
        loop: The loop, with data and federation.
        method: What carries an estimate through local steps.
        clients: Number of examined clients.
        layers: Number of parameter tensors.
        size: Number of parameters.
        width: Bytes of one.
        fisher_examples: Single-example gradients a step.
    """
    memory = clients * size * width
    text = (
        f"ClientInfluence: {clients:,} clients x {size:,} parameters are {_bytes(memory)} in "
        "memory and in every checkpoint"
    )
    if method == "truncated":
        return f"{text}; no products."
    steps = loop.clients_per_round() * _steps(loop)
    products = steps * clients * (layers if method == "layerwise" else 1)
    text += f", and three times as much more while a round runs; up to {products:,.0f} products"
    if method == "fisher":
        held = fisher_examples * size * width
        return (
            f"{text} with the gradients of {fisher_examples} examples a round, {_bytes(held)} for "
            f"these, and {steps * fisher_examples:,.0f} passes forward and back for one example."
        )
    return f"{text} with {'blocks of ' if method == 'layerwise' else ''}Hessians a round."


def batches_are_stochastic(data: FederatedDataModule, limit: int | float) -> bool:
    """Whether a local step may see a part of a client's examples only."""
    return limit != 1.0 or any(data.num_batches(client) > 1 for client in _some(data))


def _steps(loop: FederatedLoop) -> float:
    """Return the mean number of a client's local steps a round, of some clients."""
    if loop.federation.local_steps is not None:
        return loop.federation.local_steps
    some = _some(loop.data)
    mean = sum(loop.data.num_batches(client) for client in some) / len(some)
    return loop.federation.local_epochs * mean


def _some(data: FederatedDataModule) -> list[int]:
    return list(data.training_clients[:_LOOKED_AT])


def _bytes(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:,.0f} {unit}" if unit == "bytes" else f"{count:,.1f} {unit}"
        count /= 1000
    raise AssertionError
