"""`PersonalizationCallback`: every client gets its own model, and the log says what that gained."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.trainer.states import TrainerFn
from torch import nn
from torch.optim import Optimizer

from fedlightning.core.metrics import HELD_OUT
from fedlightning.core.parts import canonical
from fedlightning.engine.checks.monitors import check_monitors
from fedlightning.engine.loop import FederatedLoop
from fedlightning.errors import ConfigError
from fedlightning.personalization.models.saving import (
    discarded_on_failure,
    load_kept,
    open_personal_files,
)
from fedlightning.personalization.models.writer import PersonalWriter
from fedlightning.personalization.personalizer import Personalizer
from fedlightning.personalization.results import PersonalResult, metrics_of, write_results
from fedlightning.reporting import ClientRecord

__all__ = ["PersonalizationCallback"]


class PersonalizationCallback(pl.Callback):
    """Fine-tunes the global model for every client and measures what that gains.

    Runs at the end of training, after every ``every_n_rounds`` rounds, and in ``validate``,
    ``test`` and ``personalize``. Every client takes part, chosen in a cohort or not (of very many a
    sample: see ``eval_clients`` of :class:`FederatedDataModule`), and starts from the global model
    of that moment (with an algorithm that gives clients parts or models of their own: from those).
    The global model is not touched. Logged, over clients: ``personalized/acc`` with ``_std``,
    ``_min``, ``_p10``, ``_p90``, ``_worst_decile`` and ``_jain`` (see
    :class:`~fedlightning.reporting.Spread`), ``personalized/loss``, the same before fine-tuning as
    ``initial/...``, and ``initial/acc_nearest_mean``, the accuracy of the features without any
    head. Where ``data.val_fraction`` holds examples out, ``personalized/val_acc`` and ``val_loss``
    are measured on these: choose settings by them. Clients that ``data.held_out_clients`` holds out
    of training have the same metrics under ``held_out/``. The run folder gets ``clients.csv``,
    ``clients.png``, ``held_out_clients.csv``, and the clients' own models in ``personalized``.

    Args:
        epochs: Passes over each client's training data.
        part: What is fine-tuned: ``head`` (the body stays in eval mode), ``body``, ``full``, which
            is the default of the FedBABU paper, or an expression such as ``adapter + head``.
        lr: Learning rate of SGD.
        momentum: Momentum of SGD.
        weight_decay: L2 penalty of SGD.
        optimizer: Builds another optimizer from parameters; ``lr`` and so on are then not used.
        every_n_rounds: How often during training; ``None`` means only at its end.
        nearest_mean: Whether to measure the accuracy of the nearest class mean in feature space.
        features_once: Whether the head alone is trained, on features that the body computes once:
            the same result, without the body in every step. ``None`` does so where that is known to
            be exact (see :mod:`fedlightning.personalization.head_only.eligibility`). ``True``
            insists, and is your word for what cannot be known: that layers of your own treat each
            example by itself. ``False`` never does.
        curve: Whether clients are also evaluated after every epoch of fine-tuning. The run folder
            then gets ``finetuning.csv`` (see :class:`~fedlightning.reporting.EpochRecord`) and
            ``finetuning.png``, and ``held_out_finetuning.csv``; no other result changes.
        save_personal: Whether each client's own part goes to a file of its own in the run folder,
            under ``personalized`` (see :mod:`fedlightning.personalization.models.writer`). ``None``
            does so for at most 1,000 clients and 1 GiB, and in ``personalize`` for any number.

    Raises:
        ConfigError: If a value is out of its range.

    Source:
        Oh, Kim, Yun. FedBABU. ICLR 2022. https://arxiv.org/abs/2106.06042
    """

    def __init__(
        self,
        epochs: int = 5,
        part: str = "head",
        lr: float = 1e-3,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] | None = None,
        every_n_rounds: int | None = None,
        nearest_mean: bool = True,
        features_once: bool | None = None,
        curve: bool = False,
        save_personal: bool | None = None,
    ) -> None:
        if not isinstance(epochs, int) or epochs < 0:
            raise ConfigError(f"epochs must be an integer >= 0, got {epochs}.")
        if not (math.isfinite(lr) and lr > 0):
            raise ConfigError(f"lr must be a finite number > 0, got {lr}.")
        if every_n_rounds is not None and every_n_rounds < 1:
            raise ConfigError(f"every_n_rounds must be >= 1, got {every_n_rounds}.")
        self.epochs = epochs
        self.part = canonical(part)
        self.every_n_rounds = every_n_rounds
        self.nearest_mean = nearest_mean
        self.features_once = features_once
        self.curve = curve
        self.save_personal = save_personal
        self.results: list[PersonalResult] = []
        self.held_out_results: list[PersonalResult] = []
        self._make_optimizer = optimizer or (
            lambda parameters: torch.optim.SGD(
                parameters, lr=lr, momentum=momentum, weight_decay=weight_decay
            )
        )
        self._last_round: int | None = None
        self._rounds_loaded: int | None = None

    @property
    def records(self) -> list[ClientRecord]:
        """The clients of the last personalization that may train, by client id."""
        return [result.record for result in self.results]

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Forget the checkpoint of an earlier run."""
        self._rounds_loaded = None

    # -- when ----------------------------------------------------------------------------------

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuse, before the first round, what could not be done after the last."""
        personalizer = self.personalizer(trainer)
        personalizer.check()
        if self.features_once:
            with personalizer.at_work():
                pass  # refused here if it cannot be
        _ = _loop_of(trainer).data.evaluated_clients
        rounds = trainer.max_epochs or -1
        regular = self.every_n_rounds or (rounds if rounds > 0 else 1)
        check_monitors(trainer, regular)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Run where validation runs, so that monitors see the metrics."""
        if trainer.sanity_checking:
            return
        if trainer.state.fn != TrainerFn.FITTING or self._is_due(trainer):
            self.run(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Run at the end of a round that had no validation."""
        if self._is_due(trainer):
            self.run(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Run for the final model if no round has done so, in this process."""
        rounds = trainer.current_epoch
        if rounds and (self._last_round != rounds - 1 or not self.results):
            metrics = self._personalize(trainer)
            self._last_round = rounds - 1
            trainer.callback_metrics.update(
                {name: torch.tensor(value) for name, value in metrics.items()}
            )
            for logger in trainer.loggers:
                logger.log_metrics(metrics, step=rounds - 1)
                logger.save()

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Run in ``trainer.test``."""
        self.run(trainer)

    def _is_due(self, trainer: pl.Trainer) -> bool:
        done = trainer.current_epoch + 1
        regular = self.every_n_rounds is not None and done % self.every_n_rounds == 0
        return self._last_round != done - 1 and (regular or done == trainer.max_epochs)

    # -- what ----------------------------------------------------------------------------------

    def run(self, trainer: pl.Trainer) -> None:
        """Personalise every client and log what it gained; callable from an epoch-end hook."""
        metrics = self._personalize(trainer)
        if trainer.state.fn == TrainerFn.FITTING:
            self._last_round = trainer.current_epoch
        pl_module = trainer.lightning_module
        for name, value in metrics.items():
            pl_module.log(
                name, value, prog_bar=name == "personalized/acc", on_epoch=True, batch_size=1
            )

    def personalizer(self, trainer: pl.Trainer) -> Personalizer:
        """Return what fine-tunes the trainer's module with this callback's settings.

        Raises:
            ConfigError: If the trainer is not a FederatedTrainer, or its module has no head to tell
                apart.
        """
        return Personalizer(
            _loop_of(trainer),
            self.part,
            self.epochs,
            self._make_optimizer,
            self.nearest_mean,
            self.features_once,
            self.curve,
        )

    def _personalize(self, trainer: pl.Trainer) -> dict[str, float]:
        loop = _loop_of(trainer)
        clients = loop.data.evaluated_clients
        mine: list[PersonalResult] = []
        failure: Exception | None = None
        files = self._files(trainer, clients)
        with discarded_on_failure(files):
            try:
                with self.personalizer(trainer).at_work() as personalizer:
                    for position in filter(loop.workers.owns, range(len(clients))):
                        loop.workers.check()
                        mine.append(personalizer.client(clients[position]))
                        if files is not None:
                            record = mine[-1].record
                            files.keep(record.client_id, personalizer.own_state(record))
                        loop.fire("on_client_personalized", position + 1, len(clients))
            except Exception as error:
                failure = error
            loop.workers.agree(failure)
            if files is not None:
                files.publish()
        everyones = [result for part in loop.workers.gather(mine) for result in part]
        self.results, self.held_out_results = [], []
        for result in sorted(everyones, key=lambda result: result.record.client_id):
            held_out = loop.data.is_held_out(result.record.client_id)
            (self.held_out_results if held_out else self.results).append(result)
        if _has_folder(trainer):
            self._write(trainer)
        return metrics_of(self.results) | metrics_of(self.held_out_results, HELD_OUT)

    def _files(self, trainer: pl.Trainer, clients: Sequence[int]) -> PersonalWriter | None:
        """Return what writes the clients' files, if they are wanted; all workers must ask."""
        if not _has_folder(trainer) or self.save_personal is False:
            return None
        return open_personal_files(
            _loop_of(trainer), clients, self.part, self._rounds_loaded, self.save_personal
        )

    def _write(self, trainer: pl.Trainer) -> None:
        from fedlightning.reporting.client_logging import log_clients

        folder = trainer.log_dir  # asks rank 0
        step = max(trainer.current_epoch - (trainer.state.fn != TrainerFn.FITTING), 0)
        log_clients(trainer.loggers, self.records, step)
        if folder is None or not trainer.is_global_zero:
            return
        Path(folder).mkdir(parents=True, exist_ok=True)
        write_results(Path(folder), self.results, self.held_out_results)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take what clients kept from the checkpoint, where Lightning leaves loops alone."""
        loops = checkpoint.get("loops", {}).get("fit_loop", {}).get("state_dict", {})
        if trainer.state.fn != TrainerFn.FITTING:
            self._rounds_loaded = loops.get("round")
            load_kept(_loop_of(trainer), loops.get("extra", {}))

    def state_dict(self) -> dict[str, Any]:
        """Return when the callback last ran, so that a resumed run does not repeat it."""
        return {"last_round": self._last_round}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave."""
        self._last_round = state_dict["last_round"]


def _loop_of(trainer: pl.Trainer) -> FederatedLoop:
    if not isinstance(trainer.fit_loop, FederatedLoop):
        raise ConfigError("PersonalizationCallback needs a FederatedTrainer.")
    return trainer.fit_loop


def _has_folder(trainer: pl.Trainer) -> bool:
    return bool(trainer.loggers) and not trainer.fast_dev_run  # type: ignore[attr-defined]
