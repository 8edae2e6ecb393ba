"""`LastCheckpoint`: `checkpoints/last.ckpt` after every round, and the model at the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor

from fedlightning.core.arguments import NamedArguments
from fedlightning.engine._lightning.trainer_hooks import needs_no_step
from fedlightning.storage.files import write_atomically
from fedlightning.storage.run_layout import LAST_CHECKPOINT, WEIGHTS
from fedlightning.storage.tensor_files import serialize

__all__ = ["LastCheckpoint"]


class LastCheckpoint(NamedArguments, ModelCheckpoint):
    """Writes ``last.ckpt`` after every round, independently of other checkpoint callbacks.

    ``ModelCheckpoint(save_last=True)`` rewrites it only when a better model was saved, too. The one
    before stays as ``previous.ckpt`` (:class:`~fedlightning.AtomicCheckpointIO`). When the run is
    done, the global model is exported as ``model.safetensors``, which any framework reads.

    Args:
        dirpath: Folder; by default ``checkpoints`` in the run folder.
    """

    def __init__(self, dirpath: str | None = None) -> None:
        super().__init__(
            dirpath=dirpath,
            filename=Path(LAST_CHECKPOINT).stem,
            monitor=None,
            save_top_k=1,
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        )

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save what a run starts from, if its first releases are written down before they are.

        Killed amid its first round, it goes on here, where the ledgers are.
        """
        loop = getattr(trainer, "federated_loop", None)
        if loop is not None and loop.writes_ahead and self.dirpath is not None:
            path = Path(self.dirpath) / LAST_CHECKPOINT
            if not path.exists():
                trainer.save_checkpoint(path)
        super().on_train_start(trainer, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the round's result, also that of a round in which nobody has trained."""
        needs_no_step(self)
        super().on_train_epoch_end(trainer, pl_module)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Export the global model."""
        if trainer.is_global_zero and self.dirpath is not None and trainer.current_epoch:
            state = {k: v for k, v in pl_module.state_dict().items() if isinstance(v, Tensor)}
            write_atomically(Path(self.dirpath) / WEIGHTS, serialize(state, {"format": "pt"}))

    def state_dict(self) -> dict[str, Any]:
        """Return an empty state: a folder has one such file, whichever run writes it."""
        return {}
