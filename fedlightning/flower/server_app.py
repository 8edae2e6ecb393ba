"""The ServerApp: a run whose clients are Flower's nodes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from torch.nn.parameter import is_lazy

from fedlightning.cli.terminal import print_error, quiet
from fedlightning.core.state import live_state
from fedlightning.datamodules.base import FederatedDataModule
from fedlightning.deployment.node import versions
from fedlightning.deployment.refusals import refuse_algorithm
from fedlightning.deployment.registration import check_passports, remote_data
from fedlightning.deployment.remote_data import only_sizes
from fedlightning.deployment.server_loop import ServerTrainer
from fedlightning.errors import FedLightningError
from fedlightning.flower.grid_nodes import GridNodes, meet
from fedlightning.flower.local_run import DONE
from fedlightning.flower.settings import App, ServerCLI
from fedlightning.flower.wire import Rules
from fedlightning.personalization.models.writer import state_digest
from fedlightning.storage.checkpoint_io import latest_checkpoint

__all__ = ["Patience", "ServerRun", "app", "build", "serve"]


@dataclass(frozen=True)
class Patience:
    """How long the server waits, in seconds.

    Args:
        nodes: For all nodes to be there, before the first round.
        lost: For a lost node to come back, under ``federation.on_client_failure: retry``.
        answer: For an answer of a node that is there.
        poll: Between two looks for answers.
    """

    nodes: float = 600.0
    lost: float = 600.0
    answer: float = 43_000.0
    poll: float = 0.1

    @classmethod
    def of(cls, run_config: Mapping[str, Any]) -> Patience:
        """Return what an app's run config says.

        Example:
            >>> Patience.of({"wait": 20, "poll": 0.5}).nodes
            20.0
        """
        keys = {"nodes": "wait", "lost": "node-timeout", "answer": "answer-timeout", "poll": "poll"}
        given = {name: run_config[key] for name, key in keys.items() if key in run_config}
        return cls(**{name: float(str(value)) for name, value in given.items()})


@dataclass(frozen=True)
class ServerRun:
    """A run at the server, built from its config.

    Args:
        trainer: The trainer.
        module: The untrained module.
        data: The data module, not set up.
        settings: Digest of the settings.
    """

    trainer: ServerTrainer
    module: pl.LightningModule
    data: FederatedDataModule
    settings: str


def build(app_: App, root: str = "") -> ServerRun:
    """Build a run at the server; nothing is started.

    Args:
        app_: The app.
        root: Folder of the run, in the place of the config's ``trainer.default_root_dir``.

    Raises:
        ConfigError: The run cannot be deployed.
    """
    more = [f"--trainer.default_root_dir={Path(root).absolute()}"] if root else []
    cli = ServerCLI(args=app_.words(*more))
    assert isinstance(cli.trainer, ServerTrainer)
    refuse_algorithm(cli.trainer.federation, cli.trainer)
    return ServerRun(cli.trainer, cli.model, cli.datamodule, app_.digest())


def serve(grid: Grid, run: ServerRun, patience: Patience, resume: bool = True) -> None:
    """Run a federation whose clients are nodes of a grid, until all rounds are done.

    Args:
        grid: Flower's grid.
        run: The run.
        patience: How long to wait.
        resume: Whether to go on from the newest checkpoint under the run's root, if there is one.

    Raises:
        FedLightningError: For any mistake that the user can correct.
    """
    trainer, data = run.trainer, run.data
    found = meet(grid, data.num_clients, patience.nodes, patience.poll)
    passports = list(found.values())
    state = {key: value for key, value in live_state(run.module).items() if not is_lazy(value)}
    check_passports(passports, data.num_clients, versions(), run.settings, state_digest(state))
    remote = remote_data(passports)
    only_sizes(data, remote)
    loop = trainer.federated_loop

    def rules() -> Rules:
        return Rules.of(trainer.federation.client_algorithm, loop.roles.kept)

    trainer.connect(
        GridNodes(
            grid,
            found,
            trainer.federation.on_client_failure,
            rules,
            patience.lost,
            patience.answer,
            patience.poll,
        )
    )
    print(f"{len(found)} nodes: {remote.summary()}", flush=True)
    trainer.fit(run.module, datamodule=data, ckpt_path=_checkpoint(trainer) if resume else None)


def _checkpoint(trainer: ServerTrainer) -> Path | None:
    """Return the newest checkpoint under the run's root, if there is one."""
    root = Path(trainer.default_root_dir)
    if not any(root.glob("lightning_logs/*/checkpoints/*.ckpt")):
        return None
    path = latest_checkpoint(root)
    print(f"going on from {path}")
    return Path(path)


def main(grid: Grid, context: Context) -> None:
    """Run the app that Flower has unpacked."""
    config: dict[str, Any] = dict(context.run_config)
    try:
        with quiet():
            run = build(App.of(config), str(config.get("root", "")))
            serve(grid, run, Patience.of(config), bool(config.get("resume", True)))
        print(DONE, flush=True)
    except FedLightningError as error:
        print_error(str(error))
        raise


app = ServerApp()
app.main()(main)
