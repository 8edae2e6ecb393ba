"""From an app's folder to a run: its config, the user's modules, and what a machine adds."""

from __future__ import annotations

import hashlib
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytorch_lightning as pl
import yaml

from fedlightning.cli.federated_cli import FederatedCLI
from fedlightning.deployment.node import NodeParts
from fedlightning.deployment.node_loop import NodeTrainer
from fedlightning.deployment.server_loop import ServerTrainer
from fedlightning.errors import ConfigError, did_you_mean
from fedlightning.personalization.on_demand import client_words
from fedlightning.storage.run_layout import CONFIG

__all__ = ["App", "ServerCLI", "client_number", "node_parts"]

_PROJECT = "pyproject.toml"


@dataclass(frozen=True)
class App:
    """An app's folder, and what Flower hands over with it.

    Args:
        folder: The folder; it holds :data:`CONFIG` and the user's modules.
        overrides: Options for all machines, as on the command line.
        clients: Names of the clients, by number; empty if they are numbers.
        config: The config, where it is another file than the folder's own.
    """

    folder: Path
    overrides: tuple[str, ...] = ()
    clients: tuple[str, ...] = ()
    config: Path | None = None

    @classmethod
    def of(cls, run_config: Mapping[str, Any], folder: Path | None = None) -> App:
        """Return the app that Flower has unpacked.

        Args:
            run_config: The app's run config.
            folder: The folder; by default the first one that Python imports from.

        Raises:
            ConfigError: There is no such folder.
        """
        names = str(run_config.get("clients", ""))
        return cls(
            folder if folder is not None else _found(),
            tuple(shlex.split(str(run_config.get("overrides", "")))),
            tuple(name for name in client_words(names) if name),
        )

    @property
    def path(self) -> Path:
        """The config."""
        return self.config if self.config is not None else self.folder / CONFIG

    def digest(self) -> str:
        """Return a SHA-256 of config, overrides, names and modules, as far as results follow.

        Raises:
            ConfigError: The config cannot be read.
        """
        try:
            config = yaml.safe_load(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise ConfigError(f"{self.path}: {error}") from error
        content = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
        content.update(json.dumps([self.overrides, self.clients]).encode())
        for path in sorted(self.folder.rglob("*.py")):
            content.update(path.relative_to(self.folder).as_posix().encode() + path.read_bytes())
        return content.hexdigest()

    def words(self, *more: str) -> list[str]:
        """Return the command line of a run, whose options the later ones override."""
        return ["fit", "--config", str(self.path), *self.overrides, *more]


def _found() -> Path:
    for entry in sys.path:
        folder = Path(entry or ".")
        if (folder / CONFIG).is_file() and (folder / _PROJECT).is_file():
            return folder.resolve()
    raise ConfigError(
        f"no app here: no folder of Python's path holds {CONFIG} and {_PROJECT}; make one with "
        "`python -m fedlightning deploy --config FILE --output FOLDER`."
    )


class _DeployedCLI(FederatedCLI):
    """Builds a run from its config, and leaves it to others to start it."""

    kind: ClassVar[type[pl.Trainer]]

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return ``fit`` alone: the others' options would take a second to build."""
        return {"fit": FederatedCLI.subcommands()["fit"]}

    def before_instantiate_classes(self) -> None:
        """Build the trainer of this side."""
        self.trainer_class = self.kind

    def fit(self, **kwargs: Any) -> None:
        """Do nothing yet."""


class ServerCLI(_DeployedCLI):
    """A run at the server."""

    kind = ServerTrainer


class _NodeCLI(_DeployedCLI):
    """A run at a node, which writes no run folder."""

    kind = NodeTrainer


def node_parts(app: App, client: int, root: str | None, store: Path) -> NodeParts:
    """Build what the settings make at a node.

    Args:
        app: The app.
        client: The client whose data is here.
        root: Where the node's data is, if the config's ``data.root`` is to be replaced.
        store: The node's folder.
    """
    more = [f"--trainer.default_root_dir={store}"]
    if root is not None:
        more.append(f"--data.root={root}")
    cli = _NodeCLI(args=app.words(*more), save_config_callback=None)
    cli.datamodule.only_client = client
    cli.datamodule.prepare_data()
    cli.datamodule.setup("fit")

    def trainer() -> NodeTrainer:
        built = cli.instantiate_trainer()
        assert isinstance(built, NodeTrainer)
        return built

    return NodeParts(trainer, lambda: cli.model, cli.datamodule, app.digest())


def client_number(given: Any, names: Sequence[str]) -> int:
    """Return the number of a client that a node's config names.

    Raises:
        ConfigError: There is no such client.

    Example:
        >>> client_number("basel", ["aarau", "basel"]), client_number(3, [])
        (1, 3)
    """
    if given is None:
        raise ConfigError(
            "the node's config lacks `client`: --node-config 'client=0 store=\"...\"'"
        )
    if str(given) in names:
        return list(names).index(str(given))
    if str(given).isdecimal() and (not names or int(given) < len(names)):
        return int(given)
    known = ", ".join(names) if names else "numbers from 0"
    raise ConfigError(
        f"node-config client={given!r}: the app's clients are {known}."
        f"{did_you_mean(str(given), names)}"
    )
