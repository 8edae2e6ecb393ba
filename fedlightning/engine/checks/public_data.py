"""Whether there are the public examples that an algorithm needs: asked before the first round."""

from __future__ import annotations

from fedlightning.algorithms.algorithm import Algorithm
from fedlightning.core.batches import PUBLIC
from fedlightning.core.views import CENTRAL
from fedlightning.datamodules.base import FederatedDataModule
from fedlightning.errors import ConfigError

__all__ = ["check_public"]


def check_public(algorithm: Algorithm, data: FederatedDataModule) -> None:
    """Look for examples that everybody has, where a hook of the algorithm needs some.

    Raises:
        ConfigError: If the data has none.
    """
    if not any(hook.needs_public for hook in algorithm.hooks):
        return
    try:
        found = data.num_examples(CENTRAL, PUBLIC)
    except ConfigError as error:
        raise ConfigError(f"{_advice(algorithm, data)} ({error})") from error
    if not found:
        raise ConfigError(_advice(algorithm, data))


def _advice(algorithm: Algorithm, data: FederatedDataModule) -> str:
    return (
        f"{algorithm.name} needs public examples, and {type(data).__name__} has none: wrap it in "
        "PublicShare, or give them as the split 'public' of CENTRAL in split_examples()."
    )
