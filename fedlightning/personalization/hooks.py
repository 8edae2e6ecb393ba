"""The part of an algorithm's hooks in a client's personalization."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fedlightning.algorithms import ClientHook
from fedlightning.algorithms.finetuning import FineTuning
from fedlightning.core.module_snapshot import eval_mode
from fedlightning.core.seeding import Key, forked_generators
from fedlightning.core.state import State
from fedlightning.engine.clients import class_counts
from fedlightning.engine.loop import FederatedLoop
from fedlightning.errors import ConfigError
from fedlightning.personalization.gradients import MeanGradient

__all__ = ["TuningHooks"]

_START, _END, _FIT = 1, 2, 3  # streams of the client's personalization; fine-tuning itself has 0


class TuningHooks:
    """Lets an algorithm's hooks prepare a module for fine-tuning, and look at the result.

    Args:
        loop: The loop, with module, data and algorithm.
        keys: The keys that are fine-tuned.
        epochs: Epochs of fine-tuning; without any the hooks have no part.
    """

    def __init__(self, loop: FederatedLoop, keys: tuple[str, ...], epochs: int) -> None:
        self._loop = loop
        self._keys = keys
        self._hooks: list[ClientHook] = [h for h in loop.federation.algorithm.hooks if h.tunes]
        self._tuned = bool(epochs)
        self._fitting: list[ClientHook] = [h for h in loop.federation.algorithm.hooks if h.fits]
        self._gradient = MeanGradient(loop)

    def check(self) -> None:
        """Refuse what cannot be fine-tuned.

        Raises:
            ConfigError: A hook says so.
        """
        for hook in self._hooks:
            hook.check_finetuning(self._loop.module, self._keys)
        if self._fitting and not self._loop.module.automatic_optimization:
            raise ConfigError(
                f"{type(self._fitting[0]).__name__} asks for gradients of the training loss, and "
                f"{type(self._loop.module).__name__} optimizes by hand "
                "(automatic_optimization=False)."
            )

    def fit(self, client: int, received: Mapping[str, Tensor]) -> State:
        """Return the values of a client's own model that hooks fit to its examples.

        Args:
            client: Client id.
            received: The global model; the module holds it with what the client has kept.
        """
        found: State = {}
        with eval_mode(self._loop.module), forked_generators(self._key(client, _FIT), self._device):
            for hook in self._fitting:
                found |= hook.fit_personal(self._tuning(client, received))
        return found

    @property
    def fits(self) -> bool:
        """Whether hooks fit clients' own models to their examples."""
        return bool(self._fitting)

    def take_part(self, client: int) -> bool:
        """Whether hooks have a part in a client's personalization."""
        return bool(self._hooks) and self._tuned and self._loop.data.num_examples(client) > 0

    def prepare(self, client: int, received: Mapping[str, Tensor]) -> None:
        """Let hooks prepare the module, if they take part.

        Args:
            client: Client id.
            received: The global model.
        """
        if not self.take_part(client):
            return
        self._loop.module.eval()
        with forked_generators(self._key(client, _START), self._device):
            for hook in self._hooks:
                hook.on_finetuning_start(self._tuning(client, received))

    def finish(self, client: int, received: Mapping[str, Tensor]) -> State:
        """Return what hooks make of the fine-tuned module, which is in eval mode then.

        Args:
            client: Client id.
            received: The global model.
        """
        self._loop.module.eval()
        found: State = {}
        precision = self._loop.trainer.precision_plugin
        key = self._key(client, _END)
        with torch.no_grad(), precision.test_step_context(), forked_generators(key, self._device):
            for hook in self._hooks:
                found |= hook.on_finetuning_end(self._tuning(client, received))
        return found

    @property
    def _device(self) -> torch.device:
        return self._loop.trainer.strategy.root_device

    def _key(self, client: int, stream: int) -> Key:
        return Key(self._loop.seed, "personalize", round=stream, client=client)

    def _tuning(self, client: int, received: Mapping[str, Tensor]) -> FineTuning:
        loop = self._loop
        name = loop.federation.algorithm.name
        return FineTuning(
            client,
            loop.module,
            received,
            self._keys,
            class_counts=lambda classes: class_counts(loop.data, client, classes, name),
            num_examples=lambda split: loop.data.num_examples(client, split),
            batches=lambda split: loop.evaluator.batches(client, split),
            gradient=lambda weights: self._gradient(client, weights),
        )
