"""The gradient of a client's mean training loss over all of its examples."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fedlightning.core.batches import batch_length
from fedlightning.core.module_snapshot import ModuleSnapshot
from fedlightning.core.state import State, copy_into
from fedlightning.engine._lightning.stages import at_stage
from fedlightning.engine.local_log import LocalLog
from fedlightning.engine.local_settings import TrainerSettings
from fedlightning.engine.loop import FederatedLoop
from fedlightning.engine.resident import LIGHTNING_ATTRIBUTES
from fedlightning.engine.steps import DirectStep

__all__ = ["MeanGradient"]


class MeanGradient:
    """Computes it batch by batch; the module is left as it was.

    Args:
        loop: The loop, with module and data.
    """

    def __init__(self, loop: FederatedLoop) -> None:
        self._loop = loop

    def __call__(self, client: int, weights: Mapping[str, Tensor]) -> State:
        """Return the gradient by key of the trained parameters, 0 for a client without examples.

        The module must be in eval mode.

        Args:
            client: Client id.
            weights: Where it is taken; parameters that are left out have the module's values.
        """
        loop, module = self._loop, self._loop.module
        trained = frozenset(loop.model.roles_of(client).trained)
        parameters = {
            key: parameter
            for key, parameter in module.named_parameters()
            if key in trained and loop.model.trainable.get(key, parameter.requires_grad)
        }
        before = {key: parameters[key].detach().clone() for key in weights}
        flags = {parameter: parameter.requires_grad for parameter in module.parameters()}
        snapshot, log = ModuleSnapshot(module, LIGHTNING_ATTRIBUTES), LocalLog(module)
        try:
            copy_into({key: parameters[key] for key in weights}, weights)
            for parameter in parameters.values():
                parameter.requires_grad_()
            with at_stage(loop.trainer, "train"), log.capture(), log.muted():
                return self._sum(client, parameters)
        finally:
            snapshot.restore()
            copy_into({key: parameters[key] for key in weights}, before)
            for parameter, flag in flags.items():
                parameter.requires_grad_(flag)

    @torch.enable_grad()
    def _sum(self, client: int, parameters: Mapping[str, torch.nn.Parameter]) -> State:
        loop = self._loop
        step = DirectStep(TrainerSettings(loop.trainer), loop.module)
        total = {key: torch.zeros_like(parameter) for key, parameter in parameters.items()}
        count = loop.data.num_examples(client)
        for index, batch in enumerate(loop.evaluator.batches(client, "train")):
            loss = step.loss(batch, index)
            if loss is None:
                continue
            slopes = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
            for key, slope in zip(parameters, slopes, strict=True):
                if slope is not None:
                    total[key].add_(slope, alpha=batch_length(batch) / count)
        return total
