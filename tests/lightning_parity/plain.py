"""The right values: plain Lightning, and a mean taken by hand."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch.optim import SGD, Optimizer
from torch.utils.data import DataLoader

from tests.lightning_parity.clients import Clients, stock_loader
from tests.lightning_parity.idiom import Idiom, noting
from tests.lightning_parity.runs import QUIET, Numbers, Recorder, Run, State, numbers, seeded


class Begin(pl.Callback):
    """Has a module begin with given weights, once it is complete, and as if epochs were over.

    Args:
        state: The weights; ``None`` leaves the module's own.
        epochs: How often schedules that count epochs have stepped.
    """

    def __init__(self, state: State | None = None, epochs: int = 0) -> None:
        self._state, self._epochs = state, epochs

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._load(pl_module)
        for config in trainer.lr_scheduler_configs:
            if config.interval == "epoch" and not config.reduce_on_plateau:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of a schedule that steps before its optimizer
                    for _ in range(self._epochs):
                        config.scheduler.step()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn != "fit":
            self._load(pl_module)

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._load(pl_module)

    def _load(self, module: pl.LightningModule) -> None:
        if self._state is not None:
            module.load_state_dict(self._state)


def new_module(idiom: Idiom) -> pl.LightningModule:
    """Return the module that plain Lightning shall run."""
    return seeded(idiom.plain or idiom.module)


def fit(
    idiom: Idiom,
    clients: Clients,
    client: int,
    epochs: int,
    start: State | None = None,
    epochs_before: int = 0,
    module: pl.LightningModule | None = None,
    validates: bool = True,
) -> Run:
    """Train on one client's data with plain Lightning.

    Args:
        idiom: The idiom.
        clients: Whose data these are.
        client: One of them.
        epochs: How many epochs to train.
        start: The weights with which training starts; ``None`` leaves the module's own.
        epochs_before: How many epochs are over at the start.
        module: The module; a new one if ``None``.
        validates: Whether each epoch is validated on the client's validation data.
    """
    module = module if module is not None else new_module(idiom)
    recorder = Recorder()
    loaders = stock_loader(clients, client, "train"), stock_loader(clients, client, "val")
    loaders = loaders if validates else loaders[:1]

    def trainer_for(max_epochs: int, *callbacks: pl.Callback) -> pl.Trainer:
        flags = {**QUIET, **idiom.flags}
        return pl.Trainer(max_epochs=max_epochs, callbacks=[*callbacks], **flags)

    with noting() as notes:
        checkpoint = None
        if idiom.plain_resumes:
            first = trainer_for(1, *idiom.callbacks())
            first.fit(new_module(idiom), *loaders)
            checkpoint = Path("plain_first_epoch.ckpt").absolute()
            first.save_checkpoint(checkpoint)
        begin = Begin(start, epochs_before)
        trainer = trainer_for(epochs_before + epochs, begin, *idiom.callbacks(), recorder)
        _go_to_epoch(trainer, epochs_before)
        trainer.fit(module, *loaders, ckpt_path=checkpoint)
    return Run(module, trainer, recorder.epochs, notes, recorder.start)


def evaluate(
    idiom: Idiom,
    loader: DataLoader[Any] | None,
    split: str,
    state: State | None = None,
    module: pl.LightningModule | None = None,
) -> Numbers:
    """Return what a module logs on some data, with plain Lightning.

    Args:
        idiom: The idiom.
        loader: The data.
        split: ``"val"`` or ``"test"``.
        state: The weights; ``None`` leaves the module's own.
        module: The module; a new one if ``None``.
    """
    if loader is None:
        return {}
    module = module if module is not None else new_module(idiom)
    precision = idiom.flags.get("precision")
    trainer = pl.Trainer(callbacks=[Begin(state)], precision=precision, **QUIET)
    step = trainer.validate if split == "val" else trainer.test
    step(module, loader, verbose=False)
    return numbers(trainer.callback_metrics)


def fine_tuned(idiom: Idiom, clients: Clients, client: int, state: State, lr: float) -> Run:
    """Train the global model on one client's data for an epoch, with SGD of the given rate."""
    module = new_module(idiom)

    def one_sgd() -> Optimizer:
        return SGD([p for p in module.parameters() if p.requires_grad], lr)

    vars(module)["configure_optimizers"] = one_sgd
    return fit(idiom, clients, client, 1, start=state, module=module, validates=False)


def mean(values: Sequence[float], weights: Sequence[float] | None = None) -> float:
    """Return the mean of numbers, weighted if there are weights."""
    weights = weights or [1.0] * len(values)
    return sum(v * w for v, w in zip(values, weights, strict=True)) / sum(weights)


def mean_state(states: Sequence[State], weights: Sequence[int], before: State) -> State:
    """Return the mean of clients' weights; what is no real or complex number stays as before."""
    merged = dict(before)
    for key, value in before.items():
        if value.is_floating_point() or value.is_complex():
            wide = torch.complex128 if value.is_complex() else torch.float64
            terms = [w * state[key].to(wide) for w, state in zip(weights, states, strict=True)]
            total = terms[0]
            for term in terms[1:]:
                total = total + term
            merged[key] = (total / sum(weights)).to(value.dtype)
    return merged


def mean_numbers(all_numbers: Sequence[Numbers], weights: Sequence[float] | None = None) -> Numbers:
    """Return the means, name by name, of what clients have shown."""
    names = dict.fromkeys(name for shown in all_numbers for name in shown)
    weights = weights or [1.0] * len(all_numbers)
    means: dict[str, float] = {}
    for name in names:
        pairs = [(s[name], w) for s, w in zip(all_numbers, weights, strict=True) if name in s]
        means[name] = mean([value for value, _ in pairs], [weight for _, weight in pairs])
    return means


def _go_to_epoch(trainer: pl.Trainer, epoch: int) -> None:
    """Have a trainer count epochs from another one than 0."""
    progress = trainer.fit_loop.epoch_progress
    for counts in (progress.total, progress.current):
        counts.ready = counts.started = counts.processed = counts.completed = epoch
