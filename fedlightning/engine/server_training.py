"""The server's own training, on a share of the clients' examples of which it has a copy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fedlightning.algorithms.server_step import ServerTrainingConfig
from fedlightning.core.seeding import Key
from fedlightning.core.state import State
from fedlightning.datamodules import Batch, FederatedDataModule, Split
from fedlightning.engine.local_log import LocalLog
from fedlightning.engine.local_training import LocalTraining
from fedlightning.engine.resident import ResidentModule
from fedlightning.errors import ConfigError, FederationError, FedLightningError
from fedlightning.federation.update_checks import BadUpdate, check_tensors
from fedlightning.models.base import freeze_all_but

if TYPE_CHECKING:
    from fedlightning.engine.loop import FederatedLoop

__all__ = ["ServerTraining"]

_NOBODY = 0  # the server's streams have a purpose of their own, so this is no client's


class ServerTraining:
    """Trains the merged model in the resident module.

    Args:
        loop: The loop.
        resident: Its module.
        settings: How the server trains.
    """

    def __init__(
        self, loop: FederatedLoop, resident: ResidentModule, settings: ServerTrainingConfig
    ) -> None:
        self._loop = loop
        self._resident = resident
        self._settings = settings
        self._log = LocalLog(loop.module)
        share = _Share(loop.data, settings.fraction, loop.seed)
        self._fit = LocalTraining(loop.trainer, loop.module, share, loop.make_step(), self._log)

    def run(self, merged: Mapping[str, Tensor]) -> State:
        """Return what training makes of the merged values.

        Raises:
            FederationError: If something in it is not finite.
        """
        loop, resident = self._loop, self._resident
        resident.load_client(merged)
        try:
            for name, parameter in loop.module.named_parameters():
                parameter.requires_grad_(loop.trainable[name])
            part = loop.federation.algorithm.server_part
            if part is not None and part != "full":
                trained = loop.parts.keys(part, "algorithm.part")
                freeze_all_but(loop.module, loop.parts, trained)
            key = Key(loop.seed, "server", round=loop.round)
            with self._log.muted():
                result = self._fit.run(_NOBODY, key, self._settings.epochs)
            check_tensors(resident.actual_state(), resident.view(), result.steps)
            resident.settle()
            return resident.copy(tuple(merged))
        except FedLightningError:
            raise
        except Exception as error:
            kind = "" if isinstance(error, BadUpdate) else f"{type(error).__name__}: "
            raise FederationError(
                f"round {loop.round}, the server's own training: {kind}{error}"
            ) from error
        finally:
            self._log.discard()
            resident.reset_client()


class _Share:
    """The server's examples, as if they were a client's."""

    def __init__(self, data: FederatedDataModule, fraction: float, seed: int) -> None:
        self._data = data
        pool = np.concatenate([data.indices(client) for client in data.training_clients])
        pool = np.sort(pool)
        count = round(fraction * len(pool))
        if count < 1:
            raise ConfigError(
                f"algorithm.fraction={fraction:g} of {len(pool)} training examples is none; "
                "raise it."
            )
        chosen = Key(seed, "server").numpy().choice(len(pool), size=count, replace=False)
        self._rows = torch.from_numpy(pool[np.sort(chosen)])

    def num_batches(self, client: int) -> int:
        whole, rest = divmod(len(self._rows), self._data.batch_size)
        return whole if self._data.drop_last else whole + (rest > 0)

    def batches(
        self, client: int, split: Split, *, key: Key, device: torch.device
    ) -> Iterator[Batch]:
        data = self._data
        rows = self._rows[data.epoch_order(key, len(self._rows))]
        return (
            data.transform_batch(batch, True)
            for batch in data.pooled.train.batches(
                rows, data.batch_size, drop_last=data.drop_last, device=device, key=key
            )
        )
