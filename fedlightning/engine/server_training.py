"""The server's own training, on a share of the clients' examples of which it has a copy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from fedlightning.algorithms.server_step import ServerTrainingConfig
from fedlightning.core.batches import Batch, Split
from fedlightning.core.seeding import Key
from fedlightning.core.state import State
from fedlightning.datamodules.base import FederatedDataModule
from fedlightning.engine.local_log import LocalLog
from fedlightning.engine.local_settings import TrainerSettings
from fedlightning.engine.local_training import LocalEpochs
from fedlightning.engine.model_roles import ModelRoles
from fedlightning.engine.resident import ResidentModule
from fedlightning.engine.steps import make_step
from fedlightning.errors import ConfigError, FederationError, FedLightningError
from fedlightning.federation.update_checks import BadUpdate, check_tensors
from fedlightning.models.base import freeze_all_but

__all__ = ["ServerTraining"]

_NOBODY = 0  # the server's streams have a purpose of their own, so this is not a client's


class ServerTraining:
    """Trains the merged model in the resident module.

    Args:
        trainer: The trainer.
        data: The clients' data, of which the server has a share.
        model: The module and its parts.
        resident: The module's tensors.
        config: How the server trains.
        seed: The seed of the run.
    """

    def __init__(
        self,
        trainer: pl.Trainer,
        data: FederatedDataModule,
        model: ModelRoles,
        resident: ResidentModule,
        config: ServerTrainingConfig,
        seed: int,
    ) -> None:
        self._model = model
        self._resident = resident
        self._config = config
        self._seed = seed
        self._log = LocalLog(model.module)
        share = _Share(data, config.fraction, seed)
        step = make_step(trainer, model.module)
        self._epochs = LocalEpochs(TrainerSettings(trainer), model.module, share, step, self._log)

    def run(self, merged: Mapping[str, Tensor], round_index: int) -> State:
        """Return what training makes of the merged values.

        Raises:
            FederationError: If something in it is not finite.
        """
        model, resident = self._model, self._resident
        resident.load_client(merged)
        try:
            model.thaw()
            part = model.algorithm.server_part
            if part is not None and part != "full":
                freeze_all_but(model.module, model.parts, model.parts.keys(part, "algorithm.part"))
            key = Key(self._seed, "server", round=round_index)
            with self._log.muted():
                result = self._epochs.run(_NOBODY, key, self._config.epochs)
            check_tensors(resident.actual_state(), resident.view(), result.steps)
            resident.rebind()
            return resident.clone(tuple(merged))
        except FedLightningError:
            raise
        except Exception as error:
            kind = "" if isinstance(error, BadUpdate) else f"{type(error).__name__}: "
            raise FederationError(
                f"round {round_index}, the server's own training: {kind}{error}"
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
        return data.read(data.pooled.train, rows, key=key, device=device)
