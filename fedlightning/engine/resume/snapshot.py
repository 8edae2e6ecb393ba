"""What of a loop goes into a checkpoint, and with what a resumed run is compared."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from fedlightning.core.seeding import default_seed
from fedlightning.core.state import State
from fedlightning.datamodules import FederatedDataModule
from fedlightning.engine.evaluation import federated_data
from fedlightning.engine.model_roles import LoopWithModel
from fedlightning.engine.resume.run_settings import (
    Settings,
    optimizer_settings,
    refuse_changes,
    settings_that_matter,
)
from fedlightning.federation.server import Server
from fedlightning.federation.settings import Federation
from fedlightning.storage.checkpoint_reader import loop_state
from fedlightning.storage.client_store import ClientStore
from fedlightning.storage.run_layout import CLIENT_STATES

__all__ = ["ResumableLoop"]


class ResumableLoop(LoopWithModel):
    """A loop whose state goes into checkpoints and comes out of them.

    Args:
        trainer: The trainer that runs it.
        federation: How clients learn together.
        **limits: The least and the largest number of rounds.
    """

    def __init__(self, trainer: pl.Trainer, federation: Federation, **limits: Any) -> None:
        personal = ClientStore(self._personal_folder, federation.personal_memory_mb * 2**20)
        super().__init__(trainer, federation, personal, **limits)
        self.server: Server
        self._server_state: State = {}
        self._settings: Settings
        self._compared: Settings | None = None

    @property
    def data(self) -> FederatedDataModule:
        """The clients' data.

        Raises:
            ConfigError: If the trainer was given something else.
        """
        return federated_data(self.trainer)

    @property
    def seed(self) -> int:
        """The seed of everything in the run that is random."""
        return default_seed(self.federation.seed)

    def extra_state(self) -> dict[str, Any]:
        """Return what clients keep, and the settings that a resumed run must share."""
        return {
            "personal": self.personal.state_dict(),
            "server": self.server.state_dict(),
            "settings": self._settings,
        }

    def compare_settings(
        self, checkpoint: Mapping[str, Any], module: pl.LightningModule, data: FederatedDataModule
    ) -> None:
        """Compare what is known before a run starts with the run that left a checkpoint.

        Raises:
            CheckpointError: If that run had other settings.
        """
        saved = loop_state(checkpoint)["extra"]["settings"]
        refuse_changes(
            saved, settings_that_matter(self.trainer, self.federation, module, data, self.seed)
        )

    def check_extra_state(self, state: dict[str, Any]) -> None:
        """Compare the settings that a resumed run must share.

        Raises:
            CheckpointError: If the run that left the checkpoint had other ones.
        """
        self._compared = self._what_must_not_change()
        refuse_changes(state["settings"], self._compared)

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Take back what clients keep and what the server remembers."""
        self.load_personal(state["personal"])
        self._server_state = state.get("server", {})

    def load_personal(self, state: dict[str, Any]) -> None:
        """Take back what clients keep; their files may have moved along with the checkpoint."""
        checkpoint = self.trainer.ckpt_path
        run = Path(checkpoint).parent.parent if checkpoint is not None else None
        self.personal.load_state_dict(state, moved_to=run and run / CLIENT_STATES)

    def _personal_folder(self) -> Path:
        run = Path(self.trainer.log_dir or self.trainer.default_root_dir)
        return run.absolute() / CLIENT_STATES

    def _what_must_not_change(self) -> Settings:
        settings = settings_that_matter(
            self.trainer, self.federation, self.module, self.data, self.seed
        )
        return settings | optimizer_settings(self.trainer.optimizers)
