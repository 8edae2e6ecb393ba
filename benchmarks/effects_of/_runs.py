"""What the experiments share: a silent run, and what its clients score."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from workloads import QUIET

from fedlightning import Algorithm, FederatedTrainer, Federation, PersonalizationCallback
from fedlightning.datamodules import FederatedDataModule

__all__ = ["fit", "mean_accuracy", "seeded"]


def seeded(seed: int, make: Any, **kwargs: Any) -> Any:
    """Return a module whose weights depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make(**kwargs)


def fit(
    module: pl.LightningModule,
    data: FederatedDataModule,
    algorithm: Algorithm,
    rounds: int,
    seed: int,
    *,
    tune: dict[str, Any] | None = None,
    federation: dict[str, Any] | None = None,
    **trainer: Any,
) -> FederatedTrainer:
    """Train without logs, evaluation and files, and return the trainer.

    Args:
        module: The network.
        data: The clients' data.
        algorithm: How they learn together.
        rounds: Number of rounds.
        seed: Seed of cohorts, data order and noise.
        tune: Arguments of a personalization at the end; ``None`` leaves it out.
        federation: Further settings of the federation.
        trainer: Further arguments of the trainer.
    """
    settings = {"cohort_size": 1.0, "seed": seed, **(federation or {})}
    callbacks = [PersonalizationCallback(nearest_mean=False, **tune)] if tune is not None else []
    built = FederatedTrainer(
        federation=Federation(algorithm=algorithm, **settings),
        max_epochs=rounds,
        callbacks=[*callbacks, *trainer.pop("callbacks", [])],
        limit_val_batches=0,
        num_sanity_val_steps=0,
        **{**QUIET, **trainer},
    )
    built.fit(module, datamodule=data)
    return built


def mean_accuracy(built: FederatedTrainer, view: str = "", after: bool = False) -> float:
    """Return the mean accuracy of the clients of a view, before or after fine-tuning."""
    (callback,) = [c for c in built.callbacks if isinstance(c, PersonalizationCallback)]
    (found,) = [each for each in callback.views if each.view.name == view]
    records = [result.record for result in found.results]
    values = [r.acc_after if after else r.acc_before for r in records]
    return sum(values) / len(values)
