"""`LastCheckpoint`: `checkpoints/last.ckpt` after every round."""

from __future__ import annotations

from typing import Any

from pytorch_lightning.callbacks import ModelCheckpoint

__all__ = ["LastCheckpoint"]


class LastCheckpoint(ModelCheckpoint):
    """Writes ``last.ckpt`` after every round, whatever other checkpoints are kept.

    ``ModelCheckpoint(save_last=True)`` rewrites it only when a better model was saved, too.

    Args:
        dirpath: Folder; by default ``checkpoints`` in the run folder.
    """

    def __init__(self, dirpath: str | None = None) -> None:
        super().__init__(
            dirpath=dirpath,
            filename="last",
            monitor=None,
            save_top_k=1,
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        )

    def state_dict(self) -> dict[str, Any]:
        """Keep nothing: a resumed run has a folder, and so a last checkpoint, of its own."""
        return {}
