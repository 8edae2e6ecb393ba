"""`RoundProgressBar`: rounds, clients of the round, time left and metrics, on one line."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import TQDMProgressBar
from pytorch_lightning.callbacks.progress.tqdm_progress import Tqdm
from pytorch_lightning.trainer.states import TrainerFn

from fedlightning.core.arguments import NamedArguments
from fedlightning.engine.loop import FederatedLoop
from fedlightning.reporting.line_times import LineTimes

__all__ = ["RoundProgressBar"]


class RoundProgressBar(NamedArguments, TQDMProgressBar):
    """One bar for the whole run, which counts client updates and so moves within a round.

    Where the output is not a terminal (a log, a notebook), lines are printed instead, by time: the
    first after ten seconds, then one every 30 seconds, from ten minutes on every twentieth part of
    the time so far, at most every ten minutes, and one at the end. A line has the round, the main
    metric and the others, the time so far, and when the run is expected to end. The stock TQDM and
    Rich bars work as well; they show one bar per round.

    Args:
        refresh_rate: Clients between two redraws.
        process_position: First free line, if other bars are shown.
        leave: Accepted for compatibility; the bar of a fit always stays.
    """

    def __init__(
        self, refresh_rate: int = 1, process_position: int = 0, leave: bool = False
    ) -> None:
        super().__init__(refresh_rate=refresh_rate, process_position=process_position, leave=leave)
        self._per_round = 1
        self._times = LineTimes()
        self._printed = 0

    def init_train_tqdm(self) -> Tqdm:
        """Return the bar of the run, disabled where the output is not a terminal."""
        if not sys.stdout.isatty():
            return Tqdm(disable=True)
        bar = super().init_train_tqdm()
        bar.bar_format = "{desc} |{bar}| {elapsed}<{remaining}{postfix}"
        return bar

    def init_validation_tqdm(self) -> Tqdm:
        """Return a disabled bar during ``fit``, where validation is part of the round."""
        fitting = self.trainer.state.fn == TrainerFn.FITTING
        return Tqdm(disable=True) if fitting else super().init_validation_tqdm()

    def init_test_tqdm(self) -> Tqdm:
        """Return the bar of a test, or of ``personalize``, which counts clients."""
        if not getattr(self.trainer, "personalizes", False):
            return super().init_test_tqdm()
        if not sys.stdout.isatty():
            return Tqdm(disable=True)
        bar = super().init_test_tqdm()
        bar.bar_format = "{desc} |{bar}| {n_fmt}/{total_fmt} {elapsed}<{remaining}"
        bar.set_description_str("Personalizing")
        return bar

    def init_sanity_tqdm(self) -> Tqdm:
        """Return a disabled bar."""
        return Tqdm(disable=True)

    def on_train_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Open the bar."""
        super().on_train_start(trainer)
        bar, self._per_round = self.train_progress_bar, int(trainer.num_training_batches)
        bar.total = _rounds(trainer) * self._per_round if _rounds(trainer) else None
        bar.initial = bar.n = trainer.current_epoch * self._per_round
        self._times, self._printed = LineTimes(first_round=trainer.current_epoch), 0

    def on_train_epoch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Show the round's number."""
        self._show(trainer, clients=0)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Count a client."""
        if self.is_enabled and (batch_idx + 1) % self.refresh_rate == 0:
            self._show(trainer, clients=batch_idx + 1)
        if self.is_enabled and self.train_progress_bar.disable and self._times.due():
            of_round = int(trainer.num_training_batches)
            done = trainer.current_epoch + (batch_idx + 1) / max(of_round, 1)
            if batch_idx + 1 < of_round:  # the round's own line has its metrics
                where = f"{_round(trainer)}, client {batch_idx + 1}/{of_round}"
                print(f"{where}: {self._times.line(done, _rounds(trainer))}", flush=True)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the round's metrics."""
        metrics = self.get_metrics(trainer, pl_module)
        if not self.train_progress_bar.disable:
            self._show(trainer, clients=int(trainer.num_training_batches))
            self.train_progress_bar.set_postfix(metrics)
        elif self.is_enabled and (
            trainer.current_epoch + 1 == _rounds(trainer) or self._times.due()
        ):
            self._print_round(trainer, metrics, trainer.current_epoch + 1)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Close the bar; of a run that ends early, show the last round."""
        if self.is_enabled and self.train_progress_bar.disable:
            done = trainer.current_epoch
            if self._printed < done > self._times.first_round:
                self._print_round(trainer, self.get_metrics(trainer, pl_module), done)
        super().on_train_end(trainer, pl_module)

    def on_client_trained(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Advance by the number of workers, each of which has trained one client."""
        bar = self.train_progress_bar
        end = (trainer.current_epoch + 1) * self._per_round
        bar.n = min(bar.n + trainer.world_size, end)
        bar.refresh()

    def on_client_personalized(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, done: int, clients: int
    ) -> None:
        """Count a personalised client."""
        if not self.is_enabled:
            return
        if trainer.state.fn == TrainerFn.FITTING:
            text = f"Personalizing {done}/{clients}" if done < clients else "Personalized"
            self.train_progress_bar.set_description_str(text)
        elif getattr(trainer, "personalizes", False):
            bar = self.test_progress_bar
            bar.total, bar.n = clients, done
            bar.refresh()

    def get_metrics(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """Return the metrics to show, without Lightning's version number."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return {
            name: f"{value:.3f}" if isinstance(value, float) else value
            for name, value in metrics.items()
        }

    def _print_round(self, trainer: pl.Trainer, metrics: Mapping[str, object], done: int) -> None:
        """Print a line about the last of so many rounds."""
        self._printed = done
        main = _main_metric(trainer, metrics)
        ordered = sorted(metrics.items(), key=lambda item: item[0] != main)
        shown = [f"{name}={value}" for name, value in ordered]
        when = self._times.line(done, _rounds(trainer))
        print(f"Round {done}/{_rounds(trainer) or '?'}: {', '.join([*shown, when])}", flush=True)

    def _show(self, trainer: pl.Trainer, clients: int) -> None:
        bar, of_round = self.train_progress_bar, int(trainer.num_training_batches)
        share = clients * self._per_round // max(of_round, 1)  # a round may have fewer than others
        bar.n = trainer.current_epoch * self._per_round + share
        bar.set_description_str(f"{_round(trainer)}, client {clients}/{of_round}")


def _rounds(trainer: pl.Trainer) -> int:
    return trainer.max_epochs if trainer.max_epochs and trainer.max_epochs > 0 else 0


def _round(trainer: pl.Trainer) -> str:
    return f"Round {trainer.current_epoch + 1}/{_rounds(trainer) or '?'}"


def _main_metric(trainer: pl.Trainer, shown: Mapping[str, object]) -> str | None:
    """Return the name of the main metric among those shown, of personalized models if it can be."""
    loop = trainer.fit_loop
    if not isinstance(loop, FederatedLoop):
        return None
    columns = sorted(loop.evaluator.main_metric.columns(shown))
    return columns[-1] if columns else None
