"""`FederatedTrainer`: Lightning's Trainer, with rounds as epochs and clients as batches."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytorch_lightning as pl
import torch
from lightning_utilities.core.imports import RequirementCache
from pytorch_lightning.callbacks import Callback, ProgressBar
from pytorch_lightning.loggers import CSVLogger, Logger
from pytorch_lightning.plugins.io import CheckpointIO
from pytorch_lightning.strategies import SingleDeviceStrategy

from fedlightning.callbacks import LastCheckpoint, RoundProgressBar, RunConfig, RunRecord
from fedlightning.callbacks.personalization import PersonalizationCallback
from fedlightning.core.client_names import naming_clients
from fedlightning.core.validation import check_instance
from fedlightning.datamodules import FederatedDataModule
from fedlightning.engine._lightning.evaluation_loop import ClientEvaluationLoop
from fedlightning.engine._lightning.trainer_hooks import (
    after_environment,
    agreeing_on_checkpoint,
    around_optimizers,
    in_every_checkpoint,
    install_loops,
    loading_weights,
    logging_facts,
    uncompiled,
)
from fedlightning.engine.checks.callbacks import check_callbacks
from fedlightning.engine.checks.environment import check_environment
from fedlightning.engine.checks.hyperparameters import warn_of_hyperparameters
from fedlightning.engine.checks.inputs import (
    check_call,
    check_inputs,
    check_training,
    check_training_data,
)
from fedlightning.engine.checks.trainer_flags import (
    algorithm_name,
    check_trainer_flags,
    check_trainer_names,
)
from fedlightning.engine.evaluation import evaluation_steps
from fedlightning.engine.loop import FederatedLoop
from fedlightning.engine.resume.resumption import (
    Resumption,
    check_loadable,
)
from fedlightning.engine.run_config import run_facts, trainer_settings
from fedlightning.engine.run_folder import RunFolder
from fedlightning.engine.workers.launch import devices_of, strategy_of
from fedlightning.engine.workers.nodes import nodes_and_devices
from fedlightning.engine.workers.strategy import FederatedDDPStrategy
from fedlightning.errors import ConfigError
from fedlightning.federation.settings import Federation
from fedlightning.personalization.on_demand import ChosenClients, personalizing
from fedlightning.reporting.csv_logger import RoundCSVLogger
from fedlightning.reporting.tensorboard import TensorBoardBeside
from fedlightning.storage.checkpoint_io import AtomicCheckpointIO

__all__ = ["FederatedTrainer", "callbacks_of", "loggers_of", "plugins_of"]


class FederatedTrainer(pl.Trainer):
    """A Trainer whose epoch is a round and whose batch is a client.

    All other arguments keep their meaning: ``max_epochs`` counts rounds, ``max_steps`` client
    updates; ``gradient_clip_val``, ``accumulate_grad_batches``, ``precision`` and
    ``limit_train_batches`` apply to a client's local training; ``limit_val_batches`` counts
    clients' data sets, two a client with validation data; every round is logged, whatever
    ``log_every_n_steps`` says; ``devices`` counts the workers that share a cohort (one by default;
    with ``"auto"`` one per core or GPU). Metrics always go to a CSV file, and also to TensorBoard
    if it is installed and no logger is given. An :class:`~fedlightning.AtomicCheckpointIO` writes
    ``checkpoints/last.ckpt`` after every round.

    Args:
        federation: The federated settings; by default FedBABU with a tenth of the clients.
        num_nodes: Number of machines. Under torchrun and SLURM it is what they have started, and so
            is ``devices``, unless another number is asked for.
        **kwargs: Arguments of :class:`pytorch_lightning.Trainer`.

    Raises:
        ConfigError: If an argument has no federated meaning; the message says why.

    Example:
        >>> trainer = FederatedTrainer(max_epochs=80, logger=False, enable_checkpointing=False)
        >>> trainer.federation.algorithm.name
        'FedBABU'
    """

    loop_class: ClassVar[type[FederatedLoop]] = FederatedLoop
    """The loop that runs the rounds."""

    def __init__(
        self,
        *,
        federation: Federation | None = None,
        num_nodes: int | Literal["auto"] = 1,
        **kwargs: Any,
    ) -> None:
        check_trainer_names(kwargs)
        check_trainer_flags(kwargs)
        kwargs["num_nodes"], devices = nodes_and_devices(num_nodes, kwargs.get("devices"))
        if devices is not None:
            kwargs["devices"] = devices
        self.federation = _checked(federation) if federation is not None else Federation()
        self.settings = trainer_settings({"num_nodes": num_nodes, **kwargs})
        root = Path(kwargs.get("default_root_dir") or ".")
        kwargs.setdefault("log_every_n_steps", 1)
        if kwargs["log_every_n_steps"] is None:
            kwargs["log_every_n_steps"] = 1
        kwargs["logger"] = loggers_of(kwargs.get("logger"), root)
        kwargs["callbacks"] = callbacks_of(kwargs)
        kwargs["plugins"] = plugins_of(kwargs.get("plugins"))
        kwargs.setdefault("use_distributed_sampler", False)
        kwargs["devices"] = devices_of(kwargs, self.federation.cohort_size)
        kwargs["strategy"] = strategy_of(kwargs, self.federation.num_threads)
        super().__init__(**kwargs)
        self._check_unsupported()
        loop = self.loop_class(
            self, self.federation, min_epochs=self.min_epochs, max_epochs=self.max_epochs
        )
        install_loops(
            self,
            loop,
            evaluation=partial(
                ClientEvaluationLoop,
                evaluator=loop.evaluator,
            ),
            inference_mode=kwargs.get("inference_mode", True),
        )
        around_optimizers(self, loop.prepare, loop.note_optimizers)
        self.run_folder = RunFolder(self, loop)
        after_environment(self, self._check_and_open)
        in_every_checkpoint(self, self.run_folder.note_loggers)
        agreeing_on_checkpoint(self, self.run_folder.agreed)
        loading_weights(self, self.run_folder.load_weights)
        logging_facts(self, self._facts)
        loop.on_begun = self.run_folder.cut_back
        self.personalizes = False

    @property
    def federated_loop(self) -> FederatedLoop:
        """The loop that runs the rounds."""
        assert isinstance(self.fit_loop, FederatedLoop)
        return self.fit_loop

    @property
    def resumption(self) -> Resumption | None:
        """What the run under way continues; ``None`` if it starts anew."""
        return self.run_folder.resumption

    # -- running -------------------------------------------------------------------------------

    def save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """Save the global model and the run's state; amid a round, those of its start."""
        with self.federated_loop.showing_global():
            super().save_checkpoint(*args, **kwargs)
        self.run_folder.clear_client_states(Path(args[0] if args else kwargs["filepath"]))

    def fit(  # type: ignore[override]  # kwargs: weights_only came with Lightning 2.6
        self,
        model: pl.LightningModule,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        datamodule: pl.LightningDataModule | None = None,
        ckpt_path: str | Path | None = None,
        **kwargs: Any,
    ) -> None:
        """Train for ``max_epochs`` rounds.

        No other process may use the run's folder. A run resumed from the newest checkpoint of a run
        under the same ``default_root_dir`` continues in that run's folder; from any other
        checkpoint it starts a new folder.

        Args:
            model: The client's module.
            train_dataloaders: The FederatedDataModule, if it is not passed as ``datamodule``.
            val_dataloaders: Loaders to validate the global model on, instead of the clients'
                validation data.
            datamodule: The clients' data.
            ckpt_path: Checkpoint to resume from, or the run folder that has it; ``"last"`` is the
                newest run's under ``default_root_dir``, ``"auto"`` the same if there is one.
            **kwargs: Further arguments of ``pytorch_lightning.Trainer.fit``.

        Raises:
            FedLightningError: For any mistake that the user can correct.
        """
        check_call("fit", kwargs)
        check_callbacks(self)  # which may have come since, from a Tuner
        data = datamodule if datamodule is not None else train_dataloaders
        check_inputs(model, [data], ckpt_path)
        model = uncompiled(model)
        check_training(model)
        check_training_data(data)
        warn_of_hyperparameters(self, model, data)
        ckpt_path = self.run_folder.found(ckpt_path)
        with (
            self._at_work(model),
            self.run_folder.resuming(ckpt_path, model, data),
            evaluation_steps(model),
            _validating_on(data, val_dataloaders),
        ):
            super().fit(model, datamodule=data, ckpt_path=ckpt_path, **kwargs)

    def validate(self, model: pl.LightningModule | None = None, *args: Any, **kwargs: Any) -> Any:
        """Evaluate the global model on the clients' validation and test data, and personalize."""
        check_call("validate", kwargs)
        model = self._checked_module(model, args, kwargs)
        self.run_folder.find(kwargs, model, args)
        module = model if model is not None else self.lightning_module
        with self._at_work(module), evaluation_steps(module):
            return super().validate(model, *args, **kwargs)

    def test(self, model: pl.LightningModule | None = None, *args: Any, **kwargs: Any) -> Any:
        """Evaluate the global model on the clients' test data, and personalize."""
        check_call("test", kwargs)
        model = self._checked_module(model, args, kwargs)
        self.run_folder.find(kwargs, model, args)
        module = model if model is not None else self.lightning_module
        with self._at_work(module), evaluation_steps(module):
            return super().test(model, *args, **kwargs)

    def predict(self, model: pl.LightningModule | None = None, *args: Any, **kwargs: Any) -> Any:
        """Return the global model's predictions on the clients' test data."""
        check_call("predict", kwargs)
        model = self._checked_module(model, args, kwargs)
        self.run_folder.find(kwargs, model, args)
        module = model if model is not None else self.lightning_module
        with self._at_work(module), evaluation_steps(module):
            return super().predict(model, *args, **kwargs)

    def personalize(
        self,
        model: pl.LightningModule | None = None,
        datamodule: pl.LightningDataModule | None = None,
        ckpt_path: str | Path | None = None,
        clients: ChosenClients = None,
        verbose: bool = True,
    ) -> Any:
        """Personalize clients after a run, whether they took part in it or not.

        The settings are those of the trainer's :class:`PersonalizationCallback`, or its defaults.
        The run folder gets ``clients.csv``, ``clients.png`` and ``personalized``. The models are
        bit for bit those of the run itself. If the data differs from the run's, all clients are new
        and start from the global model.

        Args:
            model: The client's module.
            datamodule: The clients' data.
            ckpt_path: Checkpoint with the global model, or its run folder, ``"last"`` for the
                newest run's; None uses the module's own weights.
            clients: Ids or names of the clients, a list or a string such as ``"3,7,10-19"`` or
                ``"charite,mayo"``; None means all that are evaluated.
            verbose: Whether to print the metrics.

        Returns:
            The metrics, as ``test`` does.

        Raises:
            FedLightningError: For any mistake that the user can correct.
        """
        check_inputs(model, [datamodule], ckpt_path)
        check_training_data(datamodule)
        model = uncompiled(model)
        ckpt_path = self.run_folder.found(ckpt_path)
        module = model if model is not None else self.lightning_module
        if ckpt_path not in (None, "", "hpc", "best"):
            check_loadable(Path(ckpt_path), module)
        data = datamodule or getattr(self, "datamodule", None)
        with (
            self._at_work(module),
            evaluation_steps(module),
            personalizing(self, data, clients, PersonalizationCallback),
        ):
            return super().test(
                model,
                ckpt_path=ckpt_path,
                verbose=verbose,
                datamodule=datamodule,
                **_plain_values_only(),
            )

    @property
    def estimated_stepping_batches(self) -> int | float:
        """The optimizer steps of the whole run, where one optimizer goes from client to client.

        Raises:
            ConfigError: Where it does not (see ``federation.optimizer_state``), since clients take
                different numbers of steps; the message says by what to schedule instead.
        """
        if self.federation.optimizer_lifetime == "pass_on":
            return self.federated_loop.planned_steps.of_run
        raise ConfigError(
            "trainer.estimated_stepping_batches has no federated meaning: a schedule by step "
            "starts anew with every client, and clients take different numbers of steps; schedule "
            'by round ("interval": "epoch") over trainer.max_epochs rounds, or give the number of '
            "local steps yourself."
        )

    @property
    def logger(self) -> Logger | None:
        """The user's first logger; the CSV logger only if it is alone."""
        others = [logger for logger in self.loggers if not isinstance(logger, RoundCSVLogger)]
        return next(iter(others or self.loggers), None)

    @logger.setter
    def logger(self, logger: Logger | None) -> None:
        self.loggers = [logger] if logger is not None else []

    @contextmanager
    def _at_work(self, module: pl.LightningModule | None) -> Iterator[None]:
        self.federated_loop.note_modes(module)
        before = torch.get_num_threads()
        torch.set_num_threads(self.federation.num_threads or before)
        strategy = self.strategy
        try:
            check_environment(self)
            with (
                strategy.at_work() if isinstance(strategy, FederatedDDPStrategy) else nullcontext(),
                naming_clients(self._client_names),
            ):
                yield
        finally:
            torch.set_num_threads(before)

    def _client_names(self) -> Sequence[str] | None:
        return getattr(getattr(self, "datamodule", None), "client_names", None)

    def _facts(self) -> dict[str, Any]:
        """Return what loggers get beside hyperparameters; those of MLflow cannot change later."""
        data = getattr(self, "datamodule", None)
        if not isinstance(data, FederatedDataModule) or (
            self.resumption is not None
            and any(type(logger).__name__ == "MLFlowLogger" for logger in self.loggers)
        ):
            return {}
        return run_facts(self.federation, data, self.federated_loop.seed)

    # -- checks ---------------------------------------------------------------------------------

    def _check_and_open(self) -> None:
        check_callbacks(self)  # those of the module's configure_callbacks are known by now
        self.run_folder.open()

    def _checked_module(self, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # the arguments as they are: the command line reads the options off the calls with **kwargs
        check_callbacks(self)
        names = ("dataloaders", "ckpt_path")
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        data = [given.get("dataloaders"), given.get("datamodule")]
        check_inputs(model, data, given.get("ckpt_path"))
        return uncompiled(model)

    def _check_unsupported(self) -> None:
        if not isinstance(self.strategy, (SingleDeviceStrategy, FederatedDDPStrategy)):
            raise ConfigError(
                f"trainer.strategy={type(self.strategy).__name__} has no federated meaning: "
                "workers train different clients; leave trainer.strategy at auto."
            )
        check_callbacks(self)


def _checked(federation: Any) -> Federation:
    """Return ``federation`` if it is one; an algorithm instead is the usual mistake."""
    if (name := algorithm_name(federation)) is not None:
        raise ConfigError(
            f"federation must be an instance of Federation, got the algorithm {name};"
            f" pass federation=Federation(algorithm={name}(...))."
        )
    check_instance("federation", federation, Federation)
    assert isinstance(federation, Federation)
    return federation


@contextmanager
def _validating_on(data: Any, loaders: Any) -> Iterator[None]:
    """Replace the validation loaders of a data module, inside the ``with`` block."""
    if loaders is None or data is None:
        yield
        return
    data.val_dataloader = lambda: loaders
    try:
        yield
    finally:
        del data.val_dataloader


def _plain_values_only() -> dict[str, Any]:
    """Return the argument that keeps a checkpoint from running code, if Lightning has it."""
    known = inspect.signature(pl.Trainer.test).parameters
    return {"weights_only": True} if "weights_only" in known else {}


def loggers_of(given: Any, root: Path) -> list[Logger]:
    """Return the loggers: a CSV logger always comes first, because its folder is the run's."""
    if given is False:
        return []
    loggers = [] if given is None or given is True else _several(given)
    for logger in loggers:
        check_instance("trainer.logger", logger, Logger)
    csv = RoundCSVLogger(root)
    if given is None or given is True:
        return [csv, TensorBoardBeside(csv)] if RequirementCache("tensorboard") else [csv]
    return loggers if any(isinstance(logger, CSVLogger) for logger in loggers) else [csv, *loggers]


def plugins_of(given: Any) -> list[Any]:
    """Return the user's plugins, and one that writes checkpoints atomically."""
    plugins = _several(given) if given is not None else []
    if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
        plugins.append(AtomicCheckpointIO())
    return plugins


def callbacks_of(kwargs: dict[str, Any]) -> list[Callback]:
    """Return the user's callbacks, and those of every federated run."""
    callbacks: list[Callback] = _several(kwargs.get("callbacks") or [])
    for callback in callbacks:
        check_instance("trainer.callbacks", callback, Callback)
    if kwargs.get("enable_progress_bar") is not False and not _has(callbacks, ProgressBar):
        callbacks.append(RoundProgressBar())
    if kwargs["logger"] and not _has(callbacks, RunRecord):
        callbacks += [RunConfig(), RunRecord()]
    if kwargs.get("enable_checkpointing") is not False and not _has(callbacks, LastCheckpoint):
        callbacks.append(LastCheckpoint())
    return callbacks


def _several(given: Any) -> list[Any]:
    """Return one or several objects as a list; a class or a string is one object."""
    return (
        list(given)
        if isinstance(given, Iterable) and not isinstance(given, (str, type))
        else [given]
    )


def _has(callbacks: Iterable[Callback], kind: type[Callback]) -> bool:
    return any(isinstance(callback, kind) for callback in callbacks)
