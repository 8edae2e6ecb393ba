"""Lightning's private names that we rely on: a release that moves one fails here, by name."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import TensorBoardLogger, WandbLogger
from pytorch_lightning.loops.evaluation_loop import _EvaluationLoop
from pytorch_lightning.loops.fit_loop import _FitLoop
from pytorch_lightning.loops.training_epoch_loop import _TrainingEpochLoop
from pytorch_lightning.trainer import call
from pytorch_lightning.trainer.connectors.checkpoint_connector import _CheckpointConnector
from pytorch_lightning.trainer.connectors.logger_connector.logger_connector import _LoggerConnector

import fedlightning
from tests.toys import trainer

PACKAGE = Path(fedlightning.__file__).parent

NAMES = {
    _FitLoop: [
        "run", "setup_data", "reset", "on_run_start", "on_advance_start", "advance",
        "on_advance_end", "on_run_end", "on_save_checkpoint", "on_load_checkpoint",
        "_should_accumulate", "teardown", "done", "skip",
    ],
    _TrainingEpochLoop: [
        "_should_check_val_epoch", "update_lr_schedulers", "_build_kwargs", "global_step",
    ],
    _EvaluationLoop: [
        "setup_data", "reset", "run", "_evaluation_step", "_on_evaluation_epoch_end",
        "_on_evaluation_end", "skip",
    ],
    _LoggerConnector: [
        "on_batch_start", "on_batch_end", "epoch_end_reached", "on_epoch_end",
        "update_train_step_metrics", "update_train_epoch_metrics",
    ],
    _CheckpointConnector: ["dump_checkpoint"],
    call: ["_call_callback_hooks", "_call_strategy_hook", "_call_lightning_module_hook"],
    pl.LightningModule: ["_on_before_batch_transfer"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("owner", "name"), [(owner, name) for owner, names in NAMES.items() for name in names],
    ids=lambda value: getattr(value, "__name__", value),
)  # fmt: skip
def test_the_name_is_still_there(owner, name):
    assert hasattr(owner, name), f"Lightning {pl.__version__} has no {owner.__name__}.{name}"


@pytest.mark.parametrize(
    "path",
    [
        "fit_loop.epoch_progress.total.ready", "fit_loop.epoch_progress.current.completed",
        "fit_loop.max_batches", "fit_loop.epoch_loop.batch_progress.is_last_batch",
        "fit_loop.epoch_loop._batches_that_stepped", "fit_loop.epoch_loop.val_loop.restarting",
        "fit_loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step.total.completed",
        "fit_loop.epoch_loop.manual_optimization.optim_step_progress.total.completed",
        "fit_loop.epoch_loop.val_loop._has_run", "_logger_connector._callback_metrics",
        "_logger_connector._first_loop_iter", "received_sigterm",
        "validate_loop", "test_loop", "test_loop._combined_loader", "test_loop._max_batches",
        "test_loop._seen_batches_per_dataloader", "strategy.setup_optimizers",
    ],
)  # fmt: skip
def test_the_attribute_is_still_there(path):
    value = trainer()
    for name in path.split("."):
        assert hasattr(value, name), f"Lightning {pl.__version__}: trainer.{path} lost {name!r}"
        value = getattr(value, name)


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda folder: ModelCheckpoint(), ["_every_n_epochs", "_last_global_step_saved"]),
        (lambda folder: TensorBoardLogger(folder), ["_kwargs", "_version"]),
        (lambda folder: WandbLogger(save_dir=folder, offline=True), ["_id", "_wandb_init"]),
        (lambda folder: trainer(), ["_signal_connector", "_logger_connector"]),
    ],
)
def test_callbacks_loggers_and_trainer_have_theirs(make, names, tmp_path):
    made = make(tmp_path)
    missing = [name for name in names if not hasattr(made, name)]
    assert not missing, f"Lightning {pl.__version__}: {type(made).__name__} lost {missing}"


def test_only_one_package_touches_them():
    own = {PACKAGE / "__init__.py", *(PACKAGE / "engine" / "_lightning").glob("*.py")}
    theirs = {name for names in NAMES.values() for name in names if name.startswith("_")}
    theirs |= {"_every_n_epochs", "_wandb_init", "_signal_connector"}
    theirs |= {"_first_loop_iter", "_callback_metrics", "_batches_that_stepped", "_current_fx_name"}
    offenders = [
        f"{path.name}:{node.lineno} {node.attr}"
        for path in PACKAGE.rglob("*.py")
        if path not in own
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
        and node.attr in theirs
        and not (isinstance(node.value, ast.Name) and node.value.id == "self")
    ]
    imports = [
        f"{path.name}:{node.lineno}"
        for path in PACKAGE.rglob("*.py")
        if path not in own
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom)
        and (node.module or "").startswith("pytorch_lightning")
        and (
            any(alias.name.startswith("_") for alias in node.names)
            or ".loops" in (node.module or "")
            or ".connectors" in (node.module or "")
        )
    ]
    assert not offenders
    assert not imports
