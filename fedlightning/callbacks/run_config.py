"""`RunConfig`: the config of a run that was made in Python."""

from __future__ import annotations

from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.cli import SaveConfigCallback

from fedlightning.core.arguments import NamedArguments
from fedlightning.engine.loop import FederatedLoop
from fedlightning.engine.resume.resumption import Resumption
from fedlightning.engine.run_config import config_text, run_config
from fedlightning.engine.written_folder import folder_on_rank_0
from fedlightning.storage.files import write_atomically
from fedlightning.storage.run_layout import CONFIG

__all__ = ["RunConfig"]


class RunConfig(NamedArguments, pl.Callback):
    """Writes ``config.yaml`` into the folder of a run that no config has started.

    It says model, data, federation, trainer and seed as the command line would, so reports,
    ``personalize`` and ``export`` take the folder. What was only in the memory of the program is
    named in its place and at the top of the file. A run of the command line has a config already.
    """

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Write the config of an evaluation."""
        if stage != "fit" and (folder := _folder(trainer)) and not (folder / CONFIG).exists():
            _write(trainer, pl_module, folder)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the config of a new run."""
        if (folder := _folder(trainer)) and not _resumes_in_place(trainer):
            _write(trainer, pl_module, folder)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the config of a resumed run, which nothing can refuse any more."""
        if (folder := _folder(trainer)) and _resumes_in_place(trainer):
            _write(trainer, pl_module, folder)


def _write(trainer: pl.Trainer, module: pl.LightningModule, folder: Path) -> None:
    loop = trainer.fit_loop
    assert isinstance(loop, FederatedLoop)
    data = getattr(trainer, "datamodule", None)
    flags = getattr(trainer, "settings", {})
    config, missing = run_config(loop.federation, module, data, flags)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / CONFIG, config_text(config, missing).encode())


def _folder(trainer: pl.Trainer) -> Path | None:
    """Return the run folder to write to on rank 0, ``None`` elsewhere; call it on every rank."""
    callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    if any(isinstance(callback, SaveConfigCallback) for callback in callbacks):
        return None
    if not isinstance(trainer.fit_loop, FederatedLoop):
        return None
    return folder_on_rank_0(trainer)


def _resumes_in_place(trainer: pl.Trainer) -> bool:
    resumption = getattr(trainer, "resumption", None)
    return isinstance(resumption, Resumption) and resumption.in_place
