"""Training ends before its planned number of rounds: by the metric that counts, or by count."""

from __future__ import annotations

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping

from fedlightning.core.arguments import NamedArguments
from fedlightning.core.metrics import canonical_name, without_view
from fedlightning.core.validation import check_integer, check_number
from fedlightning.engine.loop import FederatedLoop
from fedlightning.errors import ConfigError, did_you_mean

__all__ = ["MainMetricStopping", "StopAfterRounds"]


class MainMetricStopping(NamedArguments, EarlyStopping):
    """Ends training when the main metric on the clients' validation data stands still.

    Which metric and which direction is better follow from ``federation.main_metric``, or from what
    the module logs first. Validation data are needed (``data.val_fraction``), and the module's
    ``validation_step`` has to log the metric.

    Args:
        patience: Validations without an improvement after which training ends.
        min_delta: The least change that is an improvement.
        verbose: Whether to say what happens.

    Raises:
        ConfigError: An argument is out of its range; in ``fit``, if there are no validation data,
            or the metric is not measured on them.
    """

    def __init__(self, patience: int = 5, min_delta: float = 0.0, verbose: bool = False) -> None:
        check_integer("patience", patience, at_least=1)
        check_number("min_delta", min_delta, at_least=0)
        super().__init__(
            "val/acc", min_delta, patience, verbose, mode="max", check_on_train_epoch_end=False
        )
        self._least = float(min_delta)

    @property
    def state_key(self) -> str:
        """The name of its state in a checkpoint, whatever the metric turns out to be."""
        return "MainMetricStopping"

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse a run without validation data, and forget the metric of an earlier one."""
        super().setup(trainer, pl_module, stage)
        data = getattr(trainer, "datamodule", None)
        if stage == "fit" and not getattr(data, "val_fraction", 0):
            raise ConfigError(
                "MainMetricStopping looks at validation data, and there are none; set "
                "data.val_fraction, for instance to 0.2."
            )

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find the metric's name, then decide."""
        if not trainer.sanity_checking:
            self._find(trainer)
        super().on_validation_end(trainer, pl_module)

    def _find(self, trainer: pl.Trainer) -> None:
        loop = trainer.fit_loop
        if not isinstance(loop, FederatedLoop):
            raise ConfigError("MainMetricStopping needs a FederatedTrainer.")
        main = loop.evaluator.main_metric
        logged = [
            name
            for name in trainer.callback_metrics
            if name.startswith(("val/", "val_")) and without_view(name) == name
        ]
        found = next((name for name in logged if canonical_name(name) == main.name), None)
        if found is None:
            raise ConfigError(
                f"MainMetricStopping: {main.name!r} is not measured on validation data "
                f"({', '.join(logged) or 'nothing is'}): log 'val/{main.name}' in validation_step."
                f"{did_you_mean(main.name, map(canonical_name, logged))}"
            )
        if main.mode != self.mode:
            self.mode = main.mode
            self.min_delta = self._least * main.sign
            if not torch.isfinite(self.best_score):
                self.best_score = torch.tensor(-main.sign * torch.inf)
        self.monitor = found


class StopAfterRounds(NamedArguments, pl.Callback):
    """Ends training after so many rounds, within a plan of ``trainer.max_epochs`` ones.

    Learning rates, noise and whatever else is planned follow from that larger number, as in a run
    that something else has ended after these rounds.

    Args:
        rounds: Number of rounds.

    Raises:
        ConfigError: The number is below 1.
    """

    def __init__(self, rounds: int) -> None:
        self.rounds = check_integer("rounds", rounds, at_least=1)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """End a run that resumes after its last round."""
        self._stop(trainer, trainer.current_epoch)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """End the run with its last round."""
        self._stop(trainer, trainer.current_epoch + 1)

    def _stop(self, trainer: pl.Trainer, done: int) -> None:
        if done >= self.rounds:
            trainer.should_stop = True
