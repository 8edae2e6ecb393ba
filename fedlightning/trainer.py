"""`FederatedTrainer`: Lightning's Trainer, with rounds for epochs and clients for batches."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from pytorch_lightning.callbacks import (
    BatchSizeFinder,
    LearningRateFinder,
)
from pytorch_lightning.loggers import Logger
from pytorch_lightning.strategies import SingleDeviceStrategy
from pytorch_lightning.trainer.states import TrainerFn

from fedlightning._lightning import (
    ClientEvaluationLoop,
    after_environment,
    before_optimizers,
    install_loops,
    requeued_checkpoint,
)
from fedlightning.checkpoints.io import LAST
from fedlightning.checkpoints.lock import RunLock
from fedlightning.checkpoints.resumption import (
    Resumption,
    check_loadable,
    check_resumable,
    prepared_data,
    resumption_of,
    run_folder,
)
from fedlightning.checkpoints.search import latest_checkpoint
from fedlightning.checkpoints.settings import warn_of_changes
from fedlightning.checkpoints.superseded import PersonalFiles
from fedlightning.defaults import callbacks_of, devices_of, loggers_of, plugins_of, strategy_of
from fedlightning.environment import check_environment
from fedlightning.errors import CheckpointError, ConfigError
from fedlightning.evaluation import evaluation_steps
from fedlightning.federation import Federation
from fedlightning.flags import refuse_meaningless
from fedlightning.loop import FederatedLoop
from fedlightning.personal_files import remove_unfinished
from fedlightning.personalize import ChosenClients, personalizing
from fedlightning.reporting.csv_logger import RoundCSVLogger
from fedlightning.reporting.files import remove_stale_files
from fedlightning.strategy import FederatedDDPStrategy

__all__ = ["FederatedTrainer"]


class FederatedTrainer(pl.Trainer):
    """A Trainer whose epoch is a round and whose batch is a client.

    All other arguments keep their meaning: ``max_epochs`` counts rounds, ``max_steps`` client
    updates; ``gradient_clip_val``, ``accumulate_grad_batches``, ``precision`` and
    ``limit_train_batches`` apply to a client's local training; ``limit_val_batches`` counts
    clients; ``log_every_n_steps`` counts rounds; ``devices`` counts the workers that share a
    cohort (one by default, with ``"auto"`` one for each core, or each GPU). The metrics always go
    to a CSV file, and to TensorBoard too where it is installed and no logger is given.
    ``checkpoints/last.ckpt`` is written after every round, by an
    :class:`~fedlightning.AtomicCheckpointIO`.

    Args:
        federation: How clients learn together; FedBABU with a tenth of the clients by default.
        **kwargs: Arguments of :class:`pytorch_lightning.Trainer`.

    Raises:
        ConfigError: If an argument has no federated meaning; the message says why.

    Example:
        >>> trainer = FederatedTrainer(max_epochs=80, logger=False, enable_checkpointing=False)
        >>> trainer.federation.algorithm.name
        'FedBABU'
    """

    def __init__(self, *, federation: Federation | None = None, **kwargs: Any) -> None:
        refuse_meaningless(kwargs)
        self.federation = federation if federation is not None else Federation()
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
        self._refuse_unsupported()
        loop = FederatedLoop(
            self, self.federation, min_epochs=self.min_epochs, max_epochs=self.max_epochs
        )
        install_loops(
            self,
            loop,
            evaluation=partial(
                ClientEvaluationLoop,
                evaluate=loop.evaluator.evaluate,
                summarise=loop.evaluator.summarise,
            ),
            inference_mode=kwargs.get("inference_mode", True),
        )
        before_optimizers(self, loop.prepare)
        after_environment(self, self._open_folder)
        self.personalizes = False
        self.resumption: Resumption | None = None
        self._lock: RunLock | None = None
        self._personal_files: PersonalFiles | None = None

    # -- running -------------------------------------------------------------------------------

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

        Nobody else may be at work in the run's folder. A run that is resumed from the newest
        checkpoint of a run under the same ``default_root_dir`` goes on in that run's folder; from
        any other checkpoint it branches off into a new one.

        Args:
            model: The client's module.
            train_dataloaders: A FederatedDataModule may be given here, too, as with the stock
                Trainer.
            val_dataloaders: A loader to validate the global model on, in place of the clients'
                data.
            datamodule: The clients' data.
            ckpt_path: Checkpoint to go on from; ``"last"`` is the newest run's under
                ``default_root_dir``.
            **kwargs: Further arguments of ``pytorch_lightning.Trainer.fit``.

        Raises:
            FedLightningError: If something a person can mend is wrong.
        """
        ckpt_path = self._found(ckpt_path)
        data = datamodule if datamodule is not None else train_dataloaders
        with (
            self._at_work(),
            self._resuming(ckpt_path, model, data),
            evaluation_steps(model),
        ):
            super().fit(model, train_dataloaders, val_dataloaders, datamodule, ckpt_path, **kwargs)

    def validate(self, model: pl.LightningModule | None = None, *args: Any, **kwargs: Any) -> Any:
        """Evaluate the global model on the clients' validation and test data, and personalise."""
        self._find(kwargs, model, args)
        with self._at_work(), evaluation_steps(model or self.lightning_module):
            return super().validate(model, *args, **kwargs)

    def test(self, model: pl.LightningModule | None = None, *args: Any, **kwargs: Any) -> Any:
        """Evaluate the global model on the clients' test data, and personalise."""
        self._find(kwargs, model, args)
        with self._at_work(), evaluation_steps(model or self.lightning_module):
            return super().test(model, *args, **kwargs)

    def predict(self, model: pl.LightningModule | None = None, *args: Any, **kwargs: Any) -> Any:
        """Return the global model's predictions on the clients' test data."""
        self._find(kwargs, model, args)
        with self._at_work(), evaluation_steps(model or self.lightning_module):
            return super().predict(model, *args, **kwargs)

    def personalize(
        self,
        model: pl.LightningModule | None = None,
        datamodule: pl.LightningDataModule | None = None,
        ckpt_path: str | Path | None = None,
        clients: ChosenClients = None,
        verbose: bool = True,
    ) -> Any:
        """Personalise clients from a finished run, whether they took part in it or not.

        The settings are those of the trainer's :class:`PersonalizationCallback`, or its defaults.
        The run folder gets ``clients.csv``, ``clients.png`` and ``personalized``; the models are
        those that the run itself gives, bit for bit. With other data than the run's, clients are
        new and start from the global model.

        Args:
            model: The client's module.
            datamodule: The clients' data.
            ckpt_path: Checkpoint with the global model, ``"last"`` for the newest run's; None means
                the module as it is.
            clients: Ids of the clients, a list or a text such as ``"3,7,10-19"``; None means those
                that the data evaluate.
            verbose: Whether to print the metrics.

        Returns:
            The metrics, as ``test`` does.

        Raises:
            FedLightningError: If something a person can mend is wrong.
        """
        ckpt_path = self._found(ckpt_path)
        module = model or self.lightning_module
        if ckpt_path not in (None, "", "hpc", "best"):
            check_loadable(Path(ckpt_path), module)
        data = datamodule or getattr(self, "datamodule", None)
        with (
            self._at_work(),
            evaluation_steps(module),
            personalizing(self, data, clients),
        ):
            return super().test(
                model,
                ckpt_path=ckpt_path,
                verbose=verbose,
                datamodule=datamodule,
                **_plain_values_only(),
            )

    def _found(self, ckpt_path: Any) -> Any:
        """Return the file that a name stands for, a requeued job's own among them."""
        if ckpt_path == "last":
            return latest_checkpoint(self.default_root_dir)
        if ckpt_path == "hpc" or (ckpt_path is None and SLURMEnvironment.detect()):
            found = requeued_checkpoint(self)
            if found is None and ckpt_path == "hpc":
                raise CheckpointError(
                    f"ckpt_path='hpc': no hpc_ckpt_*.ckpt of a preempted job in "
                    f"{self.default_root_dir}; give a path, or 'last'."
                )
            return found
        return ckpt_path

    def _find(self, kwargs: dict[str, Any], model: Any, args: tuple[Any, ...]) -> None:
        """Find the checkpoint to evaluate, and say where it does not go with the settings."""
        if kwargs.get("ckpt_path") in (None, "", "best"):
            return
        path = kwargs["ckpt_path"] = self._found(kwargs["ckpt_path"])
        module = model or self.lightning_module
        data = prepared_data(kwargs.get("datamodule") or next(iter(args), None))
        checkpoint = self.strategy.checkpoint_io.load_checkpoint(path)
        warn_of_changes(checkpoint, path, self.federation, module, data)

    def save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """Save the global model and the run's state; amid a round, those of its start."""
        with self.federated_loop.at_rest():
            super().save_checkpoint(*args, **kwargs)
        self._clear_personal(Path(args[0] if args else kwargs["filepath"]))

    def _clear_personal(self, saved: Path) -> None:
        """Remove what clients had kept in rounds that no checkpoint goes back to any more."""
        in_use = self.federated_loop.personal.files
        if not in_use:
            return
        folder = self.log_dir  # every rank must ask
        if folder is None or not self.is_global_zero or not saved.is_file():
            return
        run = Path(folder).absolute()
        files = self._personal_files
        if files is None or files.folder.parent != run:
            root = Path(self.default_root_dir).absolute()
            self._personal_files = files = PersonalFiles(run / "personal", run, root)
        files.saved(saved, in_use)
        if saved.name == LAST:
            files.remove_superseded(in_use)

    @property
    def logger(self) -> Logger | None:
        """The user's first logger; the CSV file that every run has only if it is alone."""
        others = [logger for logger in self.loggers if not isinstance(logger, RoundCSVLogger)]
        return next(iter(others or self.loggers), None)

    @logger.setter
    def logger(self, logger: Logger | None) -> None:
        self.loggers = [logger] if logger is not None else []

    @property
    def federated_loop(self) -> FederatedLoop:
        """The loop that runs the rounds."""
        assert isinstance(self.fit_loop, FederatedLoop)
        return self.fit_loop

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        before = torch.get_num_threads()
        torch.set_num_threads(self.federation.num_threads or before)
        strategy = self.strategy
        try:
            check_environment(self)
            with (
                strategy.at_work() if isinstance(strategy, FederatedDDPStrategy) else nullcontext()
            ):
                yield
        finally:
            torch.set_num_threads(before)

    # -- the run's folder ----------------------------------------------------------------------

    @contextmanager
    def _resuming(self, path: Any, model: pl.LightningModule, data: Any) -> Iterator[None]:
        """Check the checkpoint before anything is written; give the folder free at the end."""
        self.resumption, rounds = None, self.max_epochs
        try:
            if path not in (None, "", "best"):
                self.resumption = self._check_checkpoint(Path(path), model, data)
                if rounds is not None and 0 <= rounds < self.resumption.round:
                    self.fit_loop.max_epochs = self.resumption.round  # nothing to do, no mistake
            with warnings.catch_warnings():
                if self.resumption is not None and self.resumption.in_place:
                    warnings.filterwarnings("ignore", "Checkpoint directory .* is not empty")
                yield
        finally:
            self.fit_loop.max_epochs = rounds
            if self._lock is not None:
                self._lock.release()

    def _check_checkpoint(self, path: Path, model: pl.LightningModule, data: Any) -> Resumption:
        checkpoint = self.strategy.checkpoint_io.load_checkpoint(path)
        check_resumable(checkpoint, path, model)
        if (known := prepared_data(data)) is not None:
            self.federated_loop.compare_settings(checkpoint, model, known)
        return resumption_of(path, checkpoint, self)

    def _open_folder(self) -> None:
        """Take the run's folder, and clear away what a killed process has left there."""
        if self.state.fn != TrainerFn.FITTING or self.fast_dev_run:  # type: ignore[attr-defined]
            return
        if self.resumption is not None:
            self.resumption.continue_loggers(self.loggers)
        folder, failure = run_folder(self), None
        if folder is not None and self.is_global_zero:
            self._lock = RunLock(folder)
            try:
                self._lock.acquire()
            except Exception as error:
                failure = error
            else:
                for place in (folder, folder / "checkpoints", folder / "personal"):
                    remove_stale_files(place)
                remove_unfinished(folder)
        self.federated_loop.workers.agree(failure)

    # -- what is refused -----------------------------------------------------------------------

    def _refuse_unsupported(self) -> None:
        if not isinstance(self.strategy, (SingleDeviceStrategy, FederatedDDPStrategy)):
            raise ConfigError(
                f"trainer.strategy={type(self.strategy).__name__} has no federated meaning: "
                "workers train different clients; leave trainer.strategy at auto."
            )
        for callback in self.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, (LearningRateFinder, BatchSizeFinder)):
                raise ConfigError(
                    f"{type(callback).__name__} has no federated meaning: it trains outside of "
                    "rounds."
                )


def _plain_values_only() -> dict[str, Any]:
    """Return the argument that keeps a checkpoint from running code, where Lightning has it."""
    known = inspect.signature(pl.Trainer.test).parameters
    return {"weights_only": True} if "weights_only" in known else {}
