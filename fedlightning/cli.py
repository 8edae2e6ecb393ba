"""The command line: LightningCLI with a federation, shipped recipes and errors that teach."""

from __future__ import annotations

from typing import Any

from pytorch_lightning.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback

import fedlightning.callbacks
import fedlightning.models
from fedlightning.datamodules import FederatedDataModule
from fedlightning.federation import Federation
from fedlightning.trainer import FederatedTrainer
import pytorch_lightning as pl

class FederatedCLI(LightningCLI):
    def add_core_arguments_to_parser(self, parser):
        super().add_core_arguments_to_parser(parser)
        parser.add_class_arguments(Federation, "federation")
        parser.set_defaults({"federation.algorithm": {"class_path": "fedlightning.algorithms.FedBABU"}})
    def instantiate_trainer(self, **kwargs):
        return super().instantiate_trainer(federation=self._get(self.config_init, "federation"), **kwargs)

if __name__ == "__main__":
    from jsonargparse import set_parsing_settings, set_loader
    set_parsing_settings(omegaconf_absolute_to_relative_paths=True)
    import sys
    cli = FederatedCLI(pl.LightningModule, FederatedDataModule, subclass_mode_model=True, subclass_mode_data=True, trainer_class=FederatedTrainer,
       save_config_kwargs={"overwrite": True}, parser_kwargs={"parser_mode":"omegaconf+", "allow_abbrev": False})
