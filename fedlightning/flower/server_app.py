"""The ServerApp: a run whose clients are Flower's nodes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from torch.nn.parameter import is_lazy

from fedlightning.cli.terminal import print_error, quiet
from fedlightning.core.state import live_state
from fedlightning.deployment.node import versions
from fedlightning.deployment.registration import check_passports, remote_data
from fedlightning.deployment.remote_data import only_sizes
from fedlightning.deployment.server_loop import ServerTrainer
from fedlightning.errors import FedLightningError
from fedlightning.flower.grid_nodes import GridNodes, meet
from fedlightning.flower.settings import App, ServerCLI
from fedlightning.flower.wire import Rules
from fedlightning.personalization.models.writer import state_digest
from fedlightning.storage.checkpoint_io import latest_checkpoint

__all__ = ["Patience", "app", "serve"]


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


def serve(
    grid: Grid, settings: App, patience: Patience, root: str = "", resume: bool = True
) -> ServerTrainer:
    """Run a federation whose clients are nodes of a grid.

    Args:
        grid: Flower's grid.
        settings: The app.
        patience: How long to wait.
        root: Folder of the run, in the place of the config's ``trainer.default_root_dir``.
        resume: Whether to go on from the newest checkpoint there, if there is one.

    Returns:
        The trainer, when all rounds are done.

    Raises:
        FedLightningError: For any mistake that the user can correct.
    """
    more = ["--trainer.enable_progress_bar=false", "--trainer.devices=1"]
    if root:
        more.append(f"--trainer.default_root_dir={Path(root).absolute()}")
    cli = ServerCLI(args=settings.words(*more))
    trainer, module, data = cli.trainer, cli.model, cli.datamodule
    assert isinstance(trainer, ServerTrainer)
    passports = meet(grid, data.num_clients, patience.nodes, patience.poll)
    state = {key: value for key, value in live_state(module).items() if not is_lazy(value)}
    check_passports(
        list(passports.values()),
        data.num_clients,
        versions(),
        settings.digest(),
        state_digest(state),
    )
    only_sizes(data, remote_data(list(passports.values())))
    loop = trainer.federated_loop

    def rules() -> Rules:
        return Rules.of(trainer.federation.client_algorithm, loop.roles.kept)

    nodes = {passport.client: node for node, passport in passports.items()}
    policy = trainer.federation.on_client_failure
    trainer.connect(
        GridNodes(grid, nodes, policy, rules, patience.lost, patience.answer, patience.poll)
    )
    print(f"{len(nodes)} nodes are there; {remote_data(list(passports.values())).summary()}")
    trainer.fit(module, datamodule=data, ckpt_path=_checkpoint(trainer) if resume else None)
    return trainer


def _checkpoint(trainer: ServerTrainer) -> Path | None:
    """Return the newest checkpoint under the run's root, if there is one."""
    root = Path(trainer.default_root_dir)
    if not any(root.glob("lightning_logs/*/checkpoints/*.ckpt")):
        return None
    path = latest_checkpoint(root)
    print(f"going on from {path}")
    return Path(path)


app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the app that Flower has unpacked."""
    config: dict[str, Any] = dict(context.run_config)
    try:
        with quiet():
            serve(
                grid,
                App.of(config),
                Patience.of(config),
                str(config.get("root", "")),
                bool(config.get("resume", True)),
            )
    except FedLightningError as error:
        print_error(str(error))
        raise
