"""Test metrics of the global model, as it is and moved by an estimate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor

from fedlightning.core.state import copy_into
from fedlightning.engine.evaluation import ClientEvaluator
from fedlightning.engine.loop import FederatedLoop

__all__ = ["MovedModel", "measured"]


class MovedModel:
    """The global model with other parameters for the length of a ``with`` block.

    A checkpoint that is saved meanwhile holds the global model.

    Args:
        loop: The loop; its module holds the global model.
        parameters: The parameters that may be moved, by key.
    """

    def __init__(self, loop: FederatedLoop, parameters: Mapping[str, Tensor]) -> None:
        self._loop = loop
        self._live = {key: parameter.detach() for key, parameter in parameters.items()}
        self._before = {key: value.clone() for key, value in self._live.items()}

    @contextmanager
    def by(self, direction: Mapping[str, Tensor]) -> Iterator[None]:
        """Add a direction to the parameters inside the ``with`` block."""
        borrower, self._loop.borrower = self._loop.borrower, self
        try:
            copy_into(self._live, {k: self._before[k] + direction[k] for k in direction})
            yield
        finally:
            copy_into(self._live, self._before)
            self._loop.borrower = borrower

    @contextmanager
    def showing_global(self) -> Iterator[None]:
        """Show the global model inside the ``with`` block."""
        moved = {key: value.clone() for key, value in self._live.items()}
        copy_into(self._live, self._before)
        try:
            yield
        finally:
            copy_into(self._live, moved)


def measured(loop: FederatedLoop) -> dict[str, float]:
    """Return what a test of the module logs, over all views but those of validation data.

    The clients are dealt out to all workers, which get the same numbers. The module and what the
    loop remembers of its own evaluations are as before.

    Args:
        loop: The loop with module and data.
    """
    evaluator = ClientEvaluator(loop.trainer, loop.federation.seed)
    tasks = list(loop.data.test_dataloader())
    scores = {}
    failure: Exception | None = None
    try:
        evaluator.start(tasks)
        for index in filter(loop.workers.owns, range(len(tasks))):
            scores[tasks[index]] = evaluator.of_client(tasks[index])
    except Exception as error:
        failure = error
    loop.workers.agree(failure)
    return {name: value for name, (value, _) in evaluator.summarise(scores).items()}
