"""One client's update of a bare module, without a Trainer: batches in a given order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fedlightning.algorithms import Algorithm, ClientUpdate
from fedlightning.core.messages import Broadcast
from fedlightning.core.optimizers import FreshOptimizers
from fedlightning.datamodules import ClientDatasets
from fedlightning.engine.clients import ResidentClient
from fedlightning.engine.local_settings import LocalSettings
from fedlightning.engine.local_training import LocalTraining
from fedlightning.engine.model_roles import ModelRoles
from fedlightning.engine.resident import ResidentModule
from fedlightning.federation.client_update import client_update
from fedlightning.federation.schedule import Job


class InOrder(ClientDatasets):
    """Every epoch visits a client's examples as they are stored."""

    def epoch_order(self, key: Any, num_examples: int) -> Tensor:
        return torch.arange(num_examples)


def update_of(
    module: Any,
    algorithm: Algorithm,
    batches: Sequence[tuple[Tensor, Tensor]],
    *,
    kept: Mapping[str, Tensor] | None = None,
    extras: Mapping[str, Tensor] | None = None,
    version: int = 0,
) -> tuple[ClientUpdate, dict[str, Tensor]]:
    """Train on batches of equal size, one epoch; return copies of update and what is kept."""
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    classes, size = int(y.max()) + 1, len(batches[0][1])
    data = InOrder([(x, y)], [(x, y)], num_classes=classes, batch_size=size)
    data.setup()
    model = ModelRoles(module, algorithm)
    optimizer = module.configure_optimizers()
    settings = LocalSettings([optimizer["optimizer"] if isinstance(optimizer, dict) else optimizer])
    resident = ResidentModule(module, FreshOptimizers(settings.optimizers, []))
    training = LocalTraining(settings, module, data, resident, algorithm)
    client = ResidentClient(0, dict(kept or {}), resident, model, len(y))
    broadcast = Broadcast(version, resident.received, dict(extras or {}))
    update = client_update(Job(0, version, 0), broadcast, client, algorithm, training)
    state = {key: value.clone() for key, value in update.state.items()}
    resident.reset_client()
    return ClientUpdate(0, state, len(y), update.steps, extras=update.extras), client.kept
