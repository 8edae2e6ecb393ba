"""`Run`: a finished run, whether a command made it or a program."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ProgressBar

from fedlightning.callbacks.personalization import PersonalizationCallback
from fedlightning.cli.export import write_client
from fedlightning.cli.rebuilding import (
    data_from_run,
    federation_from_run,
    module_from_run,
    trainer_settings_from_run,
)
from fedlightning.cli.run_arguments import naming_accelerator
from fedlightning.core.arguments import NamedArguments
from fedlightning.core.client_names import resolve_clients
from fedlightning.core.main_metric import MainMetric
from fedlightning.core.seeding import Key, forked_generators
from fedlightning.core.statistics import Spread
from fedlightning.core.validation import check_instance
from fedlightning.datamodules import FederatedDataModule
from fedlightning.errors import ConfigError, did_you_mean
from fedlightning.federation.settings import Federation
from fedlightning.personalization.models import client_model
from fedlightning.personalization.on_demand import ChosenClients
from fedlightning.results import html
from fedlightning.results.frames import read_frame
from fedlightning.results.pictures import clients_of, curves_of, partition_of
from fedlightning.storage.checkpoint_io import good_checkpoint
from fedlightning.storage.run_folders import trained
from fedlightning.storage.run_layout import (
    CHECKPOINTS,
    CLIENTS_FIGURE,
    CONFIG,
    CURVES_FIGURE,
    METRICS,
    PARTITION_TABLE,
    client_names_in,
)
from fedlightning.studies.run_reader import Run as RunRecord
from fedlightning.studies.run_reader import find_run_folders, read_run
from fedlightning.studies.study import load_yaml
from fedlightning.trainer import FederatedTrainer

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["Run"]

_SEED = "PL_GLOBAL_SEED"
_SET_BY_TRAINERS = (_SEED, "CUBLAS_WORKSPACE_CONFIG")


class Run(NamedArguments):
    """A run: what its folder says, and what can still be made of it.

    A folder says everything but objects that only the program had which made the run: a class that
    was written in the program itself, a dataset in memory. Pass these here; nothing that a file
    says is trusted to make them.

    A notebook shows algorithm, settings and results of a run with its curves and clients.

    Args:
        folder: The run folder, or a folder with one run in it; what ``personalize`` has left beside
            it is no run.
        module: The clients' module, if the folder cannot say it; its weights do not matter.
        data: The clients' data, likewise.
        federation: The federation, likewise.

    Raises:
        ConfigError: There is no run, or there are several.

    Example:
        >>> from fedlightning import FederatedTrainer, Federation, PersonalizationCallback
        >>> from fedlightning.datamodules import Digits
        >>> from fedlightning.models import MLP
        >>> trainer = FederatedTrainer(
        ...     federation=Federation(cohort_size=2), max_epochs=1, enable_progress_bar=False,
        ...     enable_model_summary=False, default_root_dir=getfixture("tmp_path"),
        ...     callbacks=[PersonalizationCallback(epochs=1)], logger=True)
        >>> trainer.fit(MLP(64), datamodule=Digits(num_clients=4))  # doctest: +ELLIPSIS
        <BLANKLINE>
        ...
        >>> run = Run.of(trainer)
        >>> run.algorithm, run.seed, list(run.frame("clients")["client_id"])
        ('FedBABU', 0, [0, 1, 2, 3])
        >>> run.model(client=3).head.out_features
        10
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        module: pl.LightningModule | None = None,
        data: FederatedDataModule | None = None,
        federation: Federation | None = None,
    ) -> None:
        for name, value, kind in (
            ("module", module, pl.LightningModule),
            ("data", data, FederatedDataModule),
            ("federation", federation, Federation),
        ):
            if value is not None:
                check_instance(name, value, kind)
        self.folder = _run_in(Path(folder))
        self._module, self._data, self._federation = module, data, federation

    @classmethod
    def of(cls, trainer: FederatedTrainer) -> Run:
        """Return the run that a trainer has made, with the trainer's own objects.

        Raises:
            ConfigError: It has made none, or kept no files.
        """
        check_instance("trainer", trainer, FederatedTrainer)
        folder = trainer.log_dir if trainer.loggers else None
        if folder is None or not Path(folder).is_dir():
            raise ConfigError("the trainer has left no run folder: call fit, with a logger.")
        data = getattr(trainer, "datamodule", None)
        return cls(folder, trainer.lightning_module, data, trainer.federation)

    # -- what it says ----------------------------------------------------------------------------

    @property
    def config(self) -> dict[str, Any]:
        """What ``config.yaml`` says."""
        return load_yaml(self.folder / CONFIG)

    @cached_property
    def record(self) -> RunRecord:
        """What reports read of the run."""
        return read_run(self.folder)

    @property
    def algorithm(self) -> str:
        """The class of its algorithm."""
        return self.record.algorithm

    @property
    def seed(self) -> int:
        """Its seed."""
        return self.record.seed

    @property
    def main_metric(self) -> MainMetric:
        """The metric that counts."""
        return self.record.main_metric

    def frame(self, table: str = "metrics") -> pd.DataFrame:
        """Return a table of the run folder.

        Args:
            table: ``metrics``, one row per round; ``clients``, one row per client; ``rounds``,
                ``partition``, and what else the folder has.

        Raises:
            ConfigError: The folder has no such table.
            EnvironmentFailure: pandas is not installed.
        """
        return read_frame(self.folder, table)

    def figure(self, name: str = "curves") -> Figure:
        """Return a figure, which notebooks show.

        Args:
            name: ``curves``, ``clients`` or ``partition``.

        Raises:
            ConfigError: There is no such figure, or the run has no numbers for it.
        """
        figures: Mapping[str, tuple[bool, Callable[[], Figure]]] = {
            "curves": (bool(len(self.record.rounds)), lambda: curves_of(self.record)),
            "clients": (bool(self.record.clients), lambda: clients_of(self.record)),
            "partition": (
                (self.folder / PARTITION_TABLE).is_file(),
                lambda: partition_of(self.folder),
            ),
        }
        if name not in figures:
            raise ConfigError(
                f"a run has no figure {name!r}, only {', '.join(figures)}."
                f"{did_you_mean(name, figures)}"
            )
        known, draw = figures[name]
        if not known:
            raise ConfigError(f"{self.folder} has no numbers for the figure {name!r}.")
        return draw()

    # -- what can be made of it ------------------------------------------------------------------

    def model(
        self,
        client: int | str = "global",
        ckpt_path: str | os.PathLike[str] | None = None,
    ) -> pl.LightningModule:
        """Return a client's model, or the global one, in eval mode.

        Args:
            client: The client, by id or name, or ``"global"``.
            ckpt_path: Another checkpoint with the global model.

        Raises:
            FedLightningError: The run has no such model, or its module is not known.
        """
        chosen = self._client(client)
        return client_model(self.folder, chosen, self._new_module, ckpt_path=ckpt_path)

    def export(
        self,
        client: int | str,
        output: str | os.PathLike[str],
        *,
        format: str | None = None,  # noqa: A002
        input_shape: tuple[int, ...] | None = None,
        ckpt_path: str | os.PathLike[str] | None = None,
        overwrite: bool = False,
    ) -> Path:
        """Write a client's model, or the global one, to a file, as the command does.

        Args:
            client: The client, by id or name, or ``"global"``.
            output: The file.
            format: ``state_dict``, ``safetensors``, ``exported_program`` or ``onnx``; by default
                what the file's name ends with.
            input_shape: The shape of one input, for formats that store the computation.
            ckpt_path: Another checkpoint with the global model.
            overwrite: Whether a file that is there may be replaced.

        Returns:
            The file.

        Raises:
            FedLightningError: The model cannot be written.
        """
        write_client(
            self.folder,
            self._client(client),
            output,
            self._new_module,
            lambda: self._known_federation().algorithm,
            chosen=format,
            shape=input_shape,
            ckpt_path=ckpt_path,
            overwrite=overwrite,
        )
        return Path(output)

    def personalize(
        self,
        clients: ChosenClients = None,
        personalization: PersonalizationCallback | None = None,
        verbose: bool = False,
    ) -> Run:
        """Personalize clients from the run's last checkpoint, with the bits of the command.

        The trainer has the run's settings (precision, clipping, limits, accelerator, callbacks),
        but for its loggers and progress bar, and works in this process alone.

        Args:
            clients: Ids or names of the clients; ``None`` means all that are evaluated.
            personalization: How; by default as the run has said.
            verbose: Whether to print the metrics.

        Returns:
            The results, a run folder of their own beside this one.

        Raises:
            FedLightningError: For any mistake that the user can correct.
        """
        checkpoint = good_checkpoint(self.folder / CHECKPOINTS)
        with self._at_work():
            data, federation = self._known_data(), self._known_federation()
            trainer = self._new_trainer(federation, personalization)
            module = self._new_module()
            trainer.personalize(module, data, checkpoint, clients, verbose)
        assert trainer.log_dir is not None
        return Run(trainer.log_dir, self._module, data, federation)

    def _new_trainer(
        self, federation: Federation, personalization: PersonalizationCallback | None
    ) -> FederatedTrainer:
        parent = self.folder.absolute().parent
        root = parent.parent if parent.name == "lightning_logs" else parent
        settings = trainer_settings_from_run(
            self.folder,
            default_root_dir=str(root),
            logger=None,
            enable_progress_bar=False,
            enable_model_summary=False,
            devices=1,
            num_nodes=1,
            strategy="auto",
        )
        replaced: tuple[type, ...] = (ProgressBar,)
        if personalization is not None:
            replaced = (ProgressBar, PersonalizationCallback)
        kept = [each for each in settings["callbacks"] if not isinstance(each, replaced)]
        settings["callbacks"] = kept if personalization is None else [*kept, personalization]
        with naming_accelerator(settings["accelerator"]):
            return FederatedTrainer(federation=federation, **settings)

    def _client(self, given: int | str) -> int | Literal["global"]:
        if given == "global":
            return "global"
        (client,) = resolve_clients([given], self._names(), "client")
        return client

    def _names(self) -> Sequence[str] | None:
        """Return the clients' names; a folder of ``personalize`` has no list of all clients."""
        if (known := client_names_in(self.folder)) is not None or self._data is None:
            return known
        return self._data.client_names

    def _new_module(self) -> pl.LightningModule:
        if self._module is not None:
            return _copy_of(self._module)
        with forked_generators(Key(self.seed, "evaluate")):
            return module_from_run(self.folder)

    def _known_data(self) -> FederatedDataModule:
        return self._data if self._data is not None else data_from_run(self.folder)

    def _known_federation(self) -> Federation:
        known = self._federation
        return known if known is not None else federation_from_run(self.folder)

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        """Have the run's seed inside the ``with`` block, and what the program has set after it."""
        before = {name: os.environ.get(name) for name in _SET_BY_TRAINERS}
        exact = torch.are_deterministic_algorithms_enabled()
        warns = torch.is_deterministic_algorithms_warn_only_enabled()
        benchmark = torch.backends.cudnn.benchmark
        os.environ[_SEED] = str(self.seed)
        try:
            with forked_generators(Key(self.seed, "personalize")):
                yield
        finally:
            torch.use_deterministic_algorithms(exact, warn_only=warns)
            torch.backends.cudnn.benchmark = benchmark
            for name, value in before.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value

    # -- how it is shown -------------------------------------------------------------------------

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"

    def results(self) -> dict[str, str]:
        """Return the last values of the main metric, in words, by what they are of."""
        metric, record = self.main_metric, self.record
        found: dict[str, str] = {}
        if not math.isnan(value := record.last_global()):
            found[f"{metric.title}, global model"] = _in_words(value, metric)
        for name, title in (("acc_before", "before"), ("acc_after", "after")):
            if (spread := Spread.of(record.values(name))).count:
                worst = spread.min if metric.mode == "max" else spread.max
                found[f"{metric.title}, {title} personalization"] = (
                    f"{_in_words(spread.mean, metric)} (worst client {_in_words(worst, metric)})"
                )
        return found

    def _repr_html_(self) -> str:
        record = self.record
        facts = {
            "algorithm": record.algorithm,
            "data": record.settings.get("data", "?"),
            "partition": record.settings.get("data.partition") or "",
            "rounds": len(record.rounds),
            "seed": record.seed,
            **self.results(),
        }
        pictures = [
            html.picture(self.folder / CURVES_FIGURE, "learning curves"),
            html.picture(self.folder / CLIENTS_FIGURE, "clients before and after"),
        ]
        rows = [(name, value) for name, value in facts.items() if value != ""]
        note = record.unfinished and f"not finished: {record.unfinished}"
        title = f"{record.algorithm} in {_short_path(self.folder)}"
        return html.block(title, [html.table((), rows), *filter(None, pictures)], note)


def _run_in(folder: Path) -> Path:
    if (folder / CONFIG).is_file() and (folder / METRICS).is_file():
        return folder  # with replays, or personalized again, in it
    found = trained(find_run_folders([folder]))
    if len(found) == 1:
        return found[0]
    if not found:
        raise ConfigError(
            f"{folder}: no run there: a run folder has {CONFIG} and {METRICS}, such as "
            "lightning_logs/version_0."
        )
    listed = ", ".join(str(each) for each in found[:3])
    raise ConfigError(f"{folder}: {len(found)} runs are there ({listed}, ...); name one.")


def _copy_of(module: pl.LightningModule) -> pl.LightningModule:
    """Return a copy of a module that no trainer holds."""
    trainer, module._trainer = module._trainer, None
    try:
        return deepcopy(module)
    finally:
        module._trainer = trainer


def _in_words(value: float, metric: MainMetric) -> str:
    return f"{100 * value:.1f} %" if metric.is_share else f"{value:.4g}"


def _short_path(folder: Path) -> str:
    """Return a folder as seen from the current one, or its last parts: no homes in notebooks."""
    relative = os.path.relpath(folder)
    return relative if not relative.startswith("..") else "/".join(folder.parts[-3:])
