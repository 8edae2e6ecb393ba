"""`PersonalizationCallback`: a model for every client, and what that gains."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.trainer.states import TrainerFn
from torch import nn
from torch.optim import Optimizer

from fedlightning.core.arguments import NamedArguments
from fedlightning.core.network_per_client import views_by_architecture
from fedlightning.core.parts import canonical
from fedlightning.core.validation import check_integer, check_number
from fedlightning.core.views import EvaluationView
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
from fedlightning.personalization.results import (
    PersonalResult,
    ViewResult,
    results_by_view,
    write_results,
)
from fedlightning.personalization.speed_views import views_by_speed
from fedlightning.reporting import ClientRecord
from fedlightning.storage.checkpoint_reader import loop_state

__all__ = ["PersonalizationCallback"]

Elsewhere = Callable[[Sequence[int]], list[PersonalResult]]
"""Returns the results of some clients that are personalized somewhere else."""


class PersonalizationCallback(NamedArguments, pl.Callback):
    """Fine-tunes the global model for every client and measures what that gains.

    Runs at the end of training, after every ``every_n_rounds`` rounds, and in ``validate``,
    ``test`` and ``personalize``. Every client takes part, whether it was in a cohort or not (of
    very many a sample, see ``eval_clients`` of :class:`FederatedDataModule`), and starts from the
    current global model, or from its own model if the algorithm gives it one. The global model does
    not change.

    Logged, over clients: ``personalized/acc`` with ``_std``, ``_min``, ``_p10``, ``_p90``,
    ``_worst_decile`` and ``_jain`` (see :class:`~fedlightning.reporting.Spread`),
    ``personalized/loss``, the same before fine-tuning as ``initial/...``, each with ``_weighted``,
    the mean over examples, and ``initial/acc_nearest_mean``, the accuracy of nearest class means in
    feature space. With ``data.val_fraction``, ``personalized/val_acc`` and ``val_loss`` are
    measured on validation data: choose settings by them. Other evaluation views, such as
    ``held_out`` for the clients of ``data.held_out_clients``, have the same metrics after their
    name. Where the schedule's delays make some clients slow, more than twice as slow as the median
    one, ``slow`` and ``fast`` are such views. The run folder gets ``clients.csv``,
    ``clients.png``, one more table per view (``held_out_clients.csv``), and the clients' models in
    ``personalized``.

    Args:
        epochs: Passes over each client's training data.
        part: What is fine-tuned: ``head`` (the body stays in eval mode), ``body``, ``full``, which
            is the default of the FedBABU paper, or an expression such as ``adapter + head``.
        lr: Learning rate of SGD.
        momentum: Momentum of SGD.
        weight_decay: L2 penalty of SGD.
        optimizer: Builds another optimizer from parameters; ``lr``, ``momentum`` and
            ``weight_decay`` are then ignored.
        every_n_rounds: How often during training; ``None`` means only at its end.
        nearest_mean: Whether to measure the accuracy of the nearest class mean in feature space.
        features_once: Whether the head alone is trained, on features that the body computes once:
            the same result without a forward pass of the body in every step. ``None`` does so where
            that is known to be exact (see
            :mod:`fedlightning.personalization.head_only.eligibility`). ``True`` requires it, and
            asserts what cannot be checked: that your layers treat each example by itself. ``False``
            disables it.
        curve: Whether clients are also evaluated after every epoch of fine-tuning. The run folder
            then gets ``finetuning.csv`` (see :class:`~fedlightning.reporting.EpochRecord`),
            ``finetuning.png`` and one more table per view; other results do not change.
        save_personal: Whether each client's own part is saved in the run folder, one file per
            client under ``personalized`` (see
            :mod:`fedlightning.personalization.models.writer`). ``None`` does so for at most 1,000
            clients and 1 GiB, and in ``personalize`` for any number.

    Attributes:
        views: The results of the last personalization, view by view.
        elsewhere: Personalizes clients where their examples are, if that is not here.

    Raises:
        ConfigError: A value is out of its range.

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
        check_number("lr", lr, above=0)
        if every_n_rounds is not None:
            every_n_rounds = check_integer("every_n_rounds", every_n_rounds, at_least=1)
        self.epochs = check_integer("epochs", epochs, at_least=0)
        self.part = canonical(part)
        self.every_n_rounds = every_n_rounds
        self.nearest_mean = nearest_mean
        self.features_once = features_once
        self.curve = curve
        self.save_personal = save_personal
        self.views: list[ViewResult] = []
        self.elsewhere: Elsewhere | None = None
        self._make_optimizer = optimizer or (
            lambda parameters: torch.optim.SGD(
                parameters, lr=lr, momentum=momentum, weight_decay=weight_decay
            )
        )
        self._last_round: int | None = None
        self._rounds_loaded: int | None = None

    @property
    def results(self) -> Sequence[PersonalResult]:
        """The clients of the main view at the last personalization, by client id."""
        return next((each.results for each in self.views if not each.view.name), ())

    @property
    def records(self) -> list[ClientRecord]:
        """Their rows in ``clients.csv``."""
        return [result.record for result in self.results]

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Forget the checkpoint of an earlier run."""
        self._rounds_loaded = None

    # -- when ----------------------------------------------------------------------------------

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check, before the first round, that personalization will be possible after the last."""
        personalizer = self.personalizer(trainer)
        personalizer.check()
        if self.features_once:
            with personalizer.at_work():
                pass  # refused here if it cannot be
        _ = _loop_of(trainer).data.evaluation_views()
        rounds = trainer.max_epochs or -1
        regular = self.every_n_rounds or (rounds if rounds > 0 else 1)
        check_monitors(trainer, regular)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Run within validation, so that monitors see the metrics."""
        if trainer.sanity_checking:
            return
        if trainer.state.fn != TrainerFn.FITTING or self._is_due(trainer):
            self.run(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Run at the end of a round without validation."""
        if self._is_due(trainer):
            self.run(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Run for the final model, unless the last round has done so in this process."""
        rounds = trainer.current_epoch
        if rounds and (self._last_round != rounds - 1 or not self.views):
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
        """Personalise every client and log the gain; call it from an epoch-end hook."""
        metrics = self._personalize(trainer)
        if trainer.state.fn == TrainerFn.FITTING:
            self._last_round = trainer.current_epoch
        pl_module = trainer.lightning_module
        shown = f"personalized/{self.views[0].main_metric.name}" if self.views else ""
        for name, value in metrics.items():
            pl_module.log(name, value, prog_bar=name == shown, on_epoch=True, batch_size=1)

    def personalizer(self, trainer: pl.Trainer) -> Personalizer:
        """Return a :class:`Personalizer` of the trainer's module with this callback's settings.

        Raises:
            ConfigError: The trainer is not a FederatedTrainer, or the module's head is not known.
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
        views = loop.data.evaluation_views()
        views = [*views, *views_by_architecture(loop.module, views)]
        if loop.schedule.timed:
            views += views_by_speed(loop.schedule, loop.population, views)
        chosen = getattr(trainer, "personalizes", False)
        clients = loop.data.evaluated_clients if chosen else _members(views)
        mine = self._here(trainer, clients) if self.elsewhere is None else self.elsewhere(clients)
        everyones = [result for part in loop.workers.gather(mine) for result in part]
        federation = loop.federation
        self.views = results_by_view(
            views, everyones, federation.main_metric, federation.main_metric_mode
        )
        if _has_folder(trainer):
            self._write(trainer)
        return {name: value for each in self.views for name, value in each.metrics().items()}

    def _here(self, trainer: pl.Trainer, clients: Sequence[int]) -> list[PersonalResult]:
        """Personalize this worker's share of the clients, and write their files."""
        loop = _loop_of(trainer)
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
                            files.keep(clients[position], personalizer.own_state(mine[-1]))
                        loop.fire("on_client_personalized", position + 1, len(clients))
            except Exception as error:
                failure = error
            loop.workers.agree(failure)
            if files is not None:
                files.publish()
        return mine

    def _files(self, trainer: pl.Trainer, clients: Sequence[int]) -> PersonalWriter | None:
        """Return the writer of the clients' files, if they are wanted; call it on all workers."""
        if not _has_folder(trainer) or self.save_personal is False:
            return None
        return open_personal_files(
            _loop_of(trainer), clients, self.part, self._rounds_loaded, self.save_personal
        )

    def _write(self, trainer: pl.Trainer) -> None:
        from fedlightning.reporting.client_logging import log_clients

        folder = trainer.log_dir  # asks rank 0
        step = max(trainer.current_epoch - (trainer.state.fn != TrainerFn.FITTING), 0)
        for each in self.views:
            if not each.view.on_validation_data:
                log_clients(trainer.loggers, each.records, step, each.view.name, each.main_metric)
        if folder is None or not trainer.is_global_zero:
            return
        Path(folder).mkdir(parents=True, exist_ok=True)
        write_results(Path(folder), self.views)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Load the client states from the checkpoint, where Lightning does not load loops."""
        if trainer.state.fn != TrainerFn.FITTING:
            state = loop_state(checkpoint)
            self._rounds_loaded = state.get("round")
            load_kept(_loop_of(trainer), state.get("extra", {}))

    def state_dict(self) -> dict[str, Any]:
        """Return the round of the last personalization, which a resumed run does not repeat."""
        return {"last_round": self._last_round}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what :meth:`state_dict` returned."""
        self._last_round = state_dict["last_round"]


def _loop_of(trainer: pl.Trainer) -> FederatedLoop:
    if not isinstance(trainer.fit_loop, FederatedLoop):
        raise ConfigError("PersonalizationCallback needs a FederatedTrainer.")
    return trainer.fit_loop


def _members(views: Sequence[EvaluationView]) -> Sequence[int]:
    """Return the clients of all views, in ascending order."""
    clients = [view.clients for view in views if not view.is_central]
    if all(one == clients[0] for one in clients[1:]):
        return clients[0] if clients else ()
    return sorted(set().union(*clients))


def _has_folder(trainer: pl.Trainer) -> bool:
    return bool(trainer.loggers) and not trainer.fast_dev_run  # type: ignore[attr-defined]
