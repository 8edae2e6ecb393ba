"""`ClassAccuracy`: accuracy class by class, over the clients that have the class."""

from __future__ import annotations

import pytorch_lightning as pl

from fedlightning.core.arguments import NamedArguments
from fedlightning.engine.loop import FederatedLoop
from fedlightning.errors import ConfigError

__all__ = ["ClassAccuracy"]


class ClassAccuracy(NamedArguments, pl.Callback):
    """Logs ``acc_class_0``, ``acc_class_1``, ... wherever accuracy is measured.

    Each is the mean over the clients that have examples of the class, of the accuracy on these:
    ``global/acc_class_3``, ``val/acc_class_3``, ``personalized/acc_class_3`` and, in other
    evaluation views, the same after the view's name. Needs batches ``(inputs, labels)`` with one
    class per example and a module that returns logits of shape (batch, classes). They are counted
    from the logits that the module computes for its own metrics, without another forward pass.

    Example:
        >>> from fedlightning import FederatedTrainer
        >>> trainer = FederatedTrainer(callbacks=[ClassAccuracy()], logger=False)
    """

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Switch counting on."""
        _loop_of(trainer).evaluator.per_class = True

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Switch counting off."""
        _loop_of(trainer).evaluator.per_class = False


def _loop_of(trainer: pl.Trainer) -> FederatedLoop:
    if not isinstance(trainer.fit_loop, FederatedLoop):
        raise ConfigError("ClassAccuracy needs a FederatedTrainer.")
    return trainer.fit_loop
