"""The same modules under `FederatedTrainer`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from fedlightning import FedAvg, FederatedTrainer, Federation
from tests.lightning_parity.clients import Clients
from tests.lightning_parity.idiom import Idiom, noting
from tests.lightning_parity.runs import QUIET, Recorder, Run, Shown, seeded


def fit(idiom: Idiom, clients: Clients, callbacks: Sequence[pl.Callback] = ()) -> Run:
    """Train a federation of all clients, and resume it after its first round if the idiom is that.

    Raises:
        Refused: If the run ends with an error.
    """
    module = seeded(idiom.module)
    recorder = Recorder()
    try:
        with noting() as notes:
            trainer = _trainer(idiom, idiom.rounds, [*callbacks, recorder])
            if idiom.resumes:
                checkpoint = _first_round(idiom, clients)
                trainer.fit(module, datamodule=clients, ckpt_path=checkpoint)
            elif idiom.start is not None:
                idiom.start(trainer, module, {"datamodule": clients})
            else:
                trainer.fit(module, datamodule=clients)
    except Exception as error:
        raise Refused(error, recorder.clients_started == 0) from error
    return Run(module, trainer, recorder.epochs, notes)


class Refused(Exception):
    """A run that ended with an error.

    Args:
        error: The error.
        early: Whether no client had begun to train.
    """

    def __init__(self, error: Exception, early: bool) -> None:
        super().__init__(f"{type(error).__name__}: {error}")
        self.error, self.early = error, early


def fit_with_workers(idiom: Idiom, clients: Clients, workers: int, file: Path) -> list[Shown]:
    """Train with several workers; return what the first of them showed after each round."""
    recorder = Recorder(file)
    several = {"devices": workers, "strategy": "ddp_fork"} if workers > 1 else {}
    trainer = _trainer(idiom, idiom.rounds, [recorder], **several)
    trainer.fit(seeded(idiom.module), datamodule=clients)
    return [Shown(*fields) for fields in torch.load(file, weights_only=False)]


def _first_round(idiom: Idiom, clients: Clients) -> Path:
    checkpoint = Path("first_round.ckpt").absolute()
    trainer = _trainer(idiom, 1, [])
    trainer.fit(seeded(idiom.module), datamodule=clients)
    trainer.save_checkpoint(checkpoint)
    return checkpoint


def _trainer(
    idiom: Idiom, rounds: int, callbacks: Sequence[pl.Callback], **flags: Any
) -> FederatedTrainer:
    return FederatedTrainer(
        federation=Federation(FedAvg(), cohort_size=1.0, local_epochs=idiom.epochs, seed=0),
        max_epochs=rounds,
        callbacks=[*idiom.callbacks(), *callbacks],
        **{**QUIET, **idiom.flags, **flags},
    )
