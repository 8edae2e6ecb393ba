"""Where callbacks write: the run folder, by the first process alone."""

from __future__ import annotations

from pathlib import Path

import pytorch_lightning as pl

__all__ = ["folder_on_rank_0"]


def folder_on_rank_0(trainer: pl.Trainer) -> Path | None:
    """Return the run folder on rank 0; ``None`` elsewhere, and where a run leaves no files.

    Every rank must call it: the others ask rank 0 for the folder's name.
    """
    if not trainer.loggers or trainer.fast_dev_run:  # type: ignore[attr-defined]
        return None
    folder = trainer.log_dir
    return Path(folder) if folder is not None and trainer.is_global_zero else None
