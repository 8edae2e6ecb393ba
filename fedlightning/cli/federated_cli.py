"""The command line: LightningCLI with a federation."""

from __future__ import annotations

import sys
from argparse import SUPPRESS
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.utilities import rank_zero_only

import fedlightning.algorithms

# Imported classes can be named without their module.
import fedlightning.algorithms.aggregation
import fedlightning.callbacks
import fedlightning.datamodules
import fedlightning.federation.sampling  # noqa: F401
from fedlightning.callbacks.personalization import PersonalizationCallback
from fedlightning.callbacks.predictions import PredictionWriter
from fedlightning.cli.config.command import Command
from fedlightning.cli.config.references import mark_references
from fedlightning.cli.diagnostics.constructor_errors import name_failing_setting
from fedlightning.cli.parser import FederatedArgumentParser, prepare_parsing
from fedlightning.cli.run_arguments import (
    add_trainer_arguments,
    check_logger_names,
    find_checkpoint,
    naming_accelerator,
    plain_values_only,
)
from fedlightning.cli.run_watch import RunMonitor, SaveRunConfig
from fedlightning.cli.usage import usage
from fedlightning.datamodules import FederatedDataModule
from fedlightning.engine.workers.nodes import on_another_node
from fedlightning.errors import ConfigError, DataError, FedLightningError
from fedlightning.federation.settings import Federation
from fedlightning.personalization.on_demand import given_clients
from fedlightning.storage.checkpoint_reader import check_local
from fedlightning.trainer import FederatedTrainer

__all__ = ["FederatedCLI", "run_command"]

_MOST_SEED = 2**32 - 1
_TITLES = {
    "model": "model: the clients' module",
    "data": "data: the clients' data",
    "federation": "federation: how they learn together",
    "trainer": "trainer: Lightning's Trainer, with rounds for epochs and clients for batches",
}


class FederatedCLI(LightningCLI):
    """LightningCLI with the keys ``model``, ``data``, ``federation`` and ``trainer``.

    Use it in a script as you use LightningCLI: ``FederatedCLI(MyModule, MyData)``.
    ``python -m fedlightning`` is ``FederatedCLI()``, for any module and data module.

    Args:
        model_class: The module's class; any LightningModule by default.
        datamodule_class: The data module's class; any FederatedDataModule by default.
        watch: Records what the run is doing, for error messages.
        **kwargs: Arguments of LightningCLI.

    Raises:
        FedLightningError: For any mistake that the user can correct.
    """

    def __init__(
        self,
        model_class: type[pl.LightningModule] | Callable[..., pl.LightningModule] | None = None,
        datamodule_class: type[FederatedDataModule]
        | Callable[..., FederatedDataModule]
        | None = None,
        watch: RunMonitor | None = None,
        **kwargs: Any,
    ) -> None:
        self.watch = watch if watch is not None else RunMonitor()
        settings: dict[str, Any] = {
            "trainer_class": FederatedTrainer,
            "trainer_defaults": {"callbacks": [self.watch], "devices": 1},
            "seed_everything_default": 0,
            "save_config_callback": SaveRunConfig,
            "save_config_kwargs": {"overwrite": True},
            "parser_class": FederatedArgumentParser,
            "parser_kwargs": {
                name: {"usage": usage(name), "command": name} for name in self.subcommands()
            },
            "subclass_mode_model": model_class is None,
            "subclass_mode_data": datamodule_class is None,
        }
        super().__init__(
            model_class or pl.LightningModule,
            datamodule_class or FederatedDataModule,
            **{**settings, **kwargs},
        )

    # -- options -------------------------------------------------------------------------------

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Return a parser with ``--config``."""
        prepare_parsing()
        return super().init_parser(**kwargs)

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add model, data, federation, and the Trainer arguments that have a federated meaning."""
        for key, kind, any_subclass in (
            ("model", self._model_class, self.subclass_mode_model),
            ("data", self._datamodule_class, self.subclass_mode_data),
        ):
            parser.add_lightning_class_args(kind, key, subclass_mode=any_subclass)
        parser.add_class_arguments(Federation, "federation")
        parser.set_defaults({"federation.algorithm": {"class_path": "fedlightning.FedBABU"}})
        add_trainer_arguments(parser, self.trainer_class)
        given = {key: value for key, value in self.trainer_defaults.items() if key != "callbacks"}
        parser.set_defaults({f"trainer.{key}": value for key, value in given.items()})
        if getattr(parser, "command", None) == "personalize":
            parser.add_argument(
                "--clients",
                type=given_clients,
                default=SUPPRESS,
                help="Clients to personalize, by id or name, e.g. 3,7,10-19; by default all that "
                "are evaluated.",
            )
        for key, title in _TITLES.items():
            if parser.groups and key in parser.groups:
                parser.groups[key].title = title

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return the commands, and the arguments of each that are not options."""
        skip = {"model", "datamodule", "weights_only", "verbose", "return_predictions"}
        return {
            "fit": {*skip, "train_dataloaders", "val_dataloaders"},
            "validate": {*skip, "dataloaders"},
            "test": {*skip, "dataloaders"},
            "personalize": {*skip, "clients"},
            "predict": {*skip, "dataloaders"},
        }

    # -- from options to objects ---------------------------------------------------------------

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse ``args`` if given, else ``sys.argv``; LightningCLI warns if there are both."""
        if args is not None and not isinstance(args, (list, tuple)):
            self.config = parser.parse_object(args)
            return
        words = sys.argv[1:] if args is None else args
        self.config = parser.parse_args([mark_references(word) for word in words])

    def _parse_ckpt_path(self) -> None:
        """Keep the config: a checkpoint's hyperparameters override nothing."""

    def _set_seed(self) -> None:
        seed = self._get(self.config, "seed_everything")
        if not isinstance(seed, bool) and not 0 <= seed <= _MOST_SEED:
            raise ConfigError(f"seed_everything must be within 0..{_MOST_SEED}, got {seed}.")
        super()._set_seed()

    def instantiate_classes(self) -> None:
        """Build data, model and trainer; name the key of an argument that a constructor refuses."""
        settings = self.config.get(str(self.subcommand), self.config)
        check_logger_names(settings["trainer"].get("logger"))
        if settings.get("lr_scheduler") and not settings.get("optimizer"):
            raise ConfigError("lr_scheduler does nothing without optimizer: set both, or neither.")
        if self.subcommand is not None:
            root = Path(settings["trainer"].get("default_root_dir") or ".")
            found = settings.get("ckpt_path")
            if on_another_node(settings["trainer"].get("num_nodes", 1)):
                check_local(found)
                found = None  # the first node finds and reads it for all
            else:
                found = find_checkpoint(found, self.subcommand, root)
            settings["ckpt_path"] = self.watch.checkpoint = found
        groups: dict[Any, str] = {
            self._model_class: "model",
            self._datamodule_class: "data",
            self.trainer_class: "trainer",
            Federation: "federation",
        }
        names = {getattr(group, "__name__", ""): key for group, key in groups.items()}
        with name_failing_setting(settings, names):
            super().instantiate_classes()

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """Build the trainer."""
        federation = self._get(self.config_init, "federation")
        with naming_accelerator(self._get(self.config, "trainer")["accelerator"]):
            return super().instantiate_trainer(federation=federation, **kwargs)

    # -- running -------------------------------------------------------------------------------

    def fit(self, **kwargs: Any) -> None:
        """Train."""
        self._prepare_data()
        self.trainer.fit(**kwargs, **plain_values_only(pl.Trainer.fit))
        done, wanted = self.trainer.current_epoch, self.trainer.max_epochs or 0
        if not self.watch.rounds_run and 0 < wanted <= done:
            print(f"nothing to do: {done}/{wanted} rounds are done; raise trainer.max_epochs")

    def validate(self, **kwargs: Any) -> None:
        """Evaluate on the clients' validation data."""
        self._prepare_data()
        self.trainer.validate(**kwargs, **plain_values_only(pl.Trainer.validate))
        self._print_folder()

    def test(self, **kwargs: Any) -> None:
        """Evaluate on the clients' test data."""
        self._prepare_data()
        self.trainer.test(**kwargs, **plain_values_only(pl.Trainer.test))
        self._print_folder()

    def personalize(self, **kwargs: Any) -> None:
        """Fine-tune personal models from a checkpoint."""
        self._prepare_data()
        callbacks: list[pl.Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
        if not any(isinstance(callback, PersonalizationCallback) for callback in callbacks):
            callbacks.append(chosen := PersonalizationCallback())
            if self.trainer.is_global_zero:
                print(
                    "no PersonalizationCallback among trainer.callbacks: "
                    f"part={chosen.part}, epochs={chosen.epochs} and its other defaults are used"
                )
        assert isinstance(self.trainer, FederatedTrainer)
        self.trainer.personalize(**kwargs, clients=self._get(self.config_init, "clients"))
        self._print_folder()

    def predict(self, **kwargs: Any) -> None:
        """Write predictions on the clients' test data."""
        self._prepare_data()
        callbacks: list[pl.Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
        if not any(isinstance(callback, PredictionWriter) for callback in callbacks):
            callbacks.append(PredictionWriter())
        settings = plain_values_only(pl.Trainer.predict)
        self.trainer.predict(**kwargs, **settings, return_predictions=False)
        algorithm = self._get(self.config_init, "federation").algorithm
        if getattr(algorithm, "train", None) == "body" and self.trainer.is_global_zero:
            print(
                f"{algorithm.name} leaves the global head untrained; `test` with a "
                "PersonalizationCallback evaluates personalised models"
            )

    def _prepare_data(self) -> None:
        """Read and check the data, before the run folder exists."""
        self.watch.before_run(self.trainer)
        try:
            rank_zero_only(self.datamodule.prepare_data)()
            self.datamodule.setup("fit")
        except (FedLightningError, MemoryError):
            raise
        except Exception as error:
            name = type(self.datamodule).__name__
            raise DataError(f"data: {name}: {type(error).__name__}: {error}") from error

    def _print_folder(self) -> None:
        if (folder := self.watch.run_folder()) is not None:
            print(f"files: {folder}")


def run_command(
    command: Command,
    watches: list[RunMonitor],
    report: Callable[[BaseException], int] | None = None,
) -> None:
    """Run a command of ``python -m fedlightning``.

    Args:
        command: What to run.
        watches: Receives the run's monitor, which explains a failure.
        report: Reports a failure where the process has to be ended from another thread.
    """
    if command.strict:
        prepare_parsing(strict=True)
    watch = RunMonitor()
    watch.report = report
    watches.append(watch)
    FederatedCLI(watch=watch, args=[command.name, *command.options])
