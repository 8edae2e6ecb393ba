"""An app for Flower without code: the resolved config, the user's modules, and how to run it."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from fedlightning._version import __version__
from fedlightning.algorithms.aggregation import SecureSum
from fedlightning.cli.config.class_names import named_classes
from fedlightning.deployment.refusals import refuse_algorithm
from fedlightning.errors import ConfigError
from fedlightning.flower.guide import nodes_page, units
from fedlightning.flower.settings import ServerCLI
from fedlightning.storage.files import os_errors_as_failures, write_atomically
from fedlightning.storage.run_layout import CONFIG

__all__ = ["AppAbout", "write_app"]

_LONGEST_NAME = 32
_DROPPED = re.compile(r"test_.*|.*_test")  # Flower leaves such files out of an app
_NOT_IN_NAMES = re.compile(r"[\\/'\"\x00-\x1f\x7f]")
_PROJECT = """\
[project]
name = "{name}"
version = "1.0.0"
description = "a federated run, made by python -m fedlightning deploy"
license = "Apache-2.0"
dependencies = ["fedlightning[flower]=={version}"]

[tool.flwr.app]
publisher = "fedlightning"

[tool.flwr.app.components]
serverapp = "fedlightning.flower.server_app:app"
clientapp = "fedlightning.flower.client_app:app"

[tool.flwr.app.config]
overrides = ""           # options for all machines, such as "--trainer.max_epochs=50"
clients = {clients}             # names of the clients, by number: "aarau,basel"
root = ""                # folder of the run at the server, in the place of trainer.default_root_dir
resume = true            # go on from the newest checkpoint there
wait = 600.0             # seconds to wait for all nodes
node-timeout = 600.0     # seconds to wait for a lost node, with on_client_failure: retry
answer-timeout = 43000.0 # seconds to wait for an answer of a node that is there
poll = 0.1               # seconds between two looks for answers
"""


class AppAbout:
    """What an app is: its name and its clients.

    Args:
        name: Its name: letters, digits and hyphens.
        num_clients: Number of clients.
        clients: Their names, by number; empty if they are numbers.
        masked: Whether nodes mask what they send, and need each other's keys.
    """

    def __init__(
        self, name: str, num_clients: int, clients: Sequence[str] = (), masked: bool = False
    ) -> None:
        self.name = name
        self.num_clients = num_clients
        self.clients = tuple(clients)
        self.masked = masked

    def client(self, number: int) -> str:
        """Return how a node's config names a client."""
        return f'"{self.clients[number]}"' if self.clients else str(number)


def write_app(folder: Path, cli: ServerCLI, stem: str, clients: Sequence[str]) -> AppAbout:
    """Write an app's folder.

    Args:
        folder: The folder; it is made, or must hold an earlier app or nothing.
        cli: The run, built from its config.
        stem: The config's name, from which the app's follows.
        clients: Names of the clients, by number.

    Raises:
        ConfigError: The run cannot be deployed, or the folder is in use.
        EnvironmentFailure: A file cannot be written.
    """
    if folder.exists() and any(folder.iterdir()) and not (folder / CONFIG).is_file():
        raise ConfigError(
            f"--output {folder} holds other files; name a new folder, or that of an earlier app."
        )
    refuse_algorithm(cli.trainer.federation, cli.trainer)  # type: ignore[attr-defined]
    count = cli.datamodule.num_clients
    if clients and len(clients) != count:
        raise ConfigError(f"--clients names {len(clients)}, and data.num_clients={count}.")
    _check_names(clients)
    masked = isinstance(cli.trainer.federation.aggregator, SecureSum)  # type: ignore[attr-defined]
    about = AppAbout(_name(stem), count, clients, masked)
    text = _resolved(cli)
    has_root = _has_root(yaml.safe_load(text)["data"])
    files = {
        CONFIG: text,
        "pyproject.toml": _PROJECT.format(
            name=about.name,
            version=__version__,
            clients=json.dumps(_listed(clients), ensure_ascii=False),
        ),
        "NODES.md": nodes_page(
            about.name, folder.name, [about.client(c) for c in range(count)], has_root, masked
        ),
        **{f"systemd/{name}": unit for name, unit in units(about.name, has_root, masked).items()},
    }
    with os_errors_as_failures("write", folder):
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.rglob("*.py"):
            old.unlink()
    for name, content in files.items():
        write_atomically(folder / name, content.encode())
    for name, path in _own_modules(yaml.safe_load(text)):
        write_atomically(folder / name, path.read_bytes())
    return about


def _check_names(names: Sequence[str]) -> None:
    for name in names:
        if (wrong := _NOT_IN_NAMES.search(name)) is not None:
            raise ConfigError(
                f"--clients: {name!r} has {wrong[0]!r}, which cannot be in the name of a node's "
                "folder, key or config; give it another name."
            )
        if names.count(name) > 1:
            raise ConfigError(f"--clients names {name!r} {names.count(name)} times.")


def _listed(names: Sequence[str]) -> str:
    """Return names as a list of them is read.

    Example:
        >>> _listed(["Smith, Jones", "mayo"])
        '"Smith, Jones",mayo'
    """
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(names)
    return text.getvalue()


def _resolved(cli: ServerCLI) -> str:
    """Return the whole config, with absolute paths, as a run folder's."""
    config = cli.config["fit"].clone()
    root = config["trainer"].get("default_root_dir") or "."
    config["trainer"]["default_root_dir"] = str(Path(root).absolute())
    config["ckpt_path"] = None
    text: str = cli._parser("fit").dump(config, skip_none=False)
    return text


def _has_root(data: Any) -> bool:
    """Whether a data module's settings name a folder that it reads, at any depth."""
    return isinstance(data, dict) and ("root" in data or any(map(_has_root, data.values())))


def _name(stem: str) -> str:
    """Return an app's name.

    Example:
        >>> _name("my_run.v2")
        'my-run-v2'
    """
    name = re.sub(r"[^A-Za-z0-9]+", "-", stem).strip("-")[:_LONGEST_NAME].strip("-")
    return name or "run"


def _own_modules(config: Any) -> Iterator[tuple[str, Path]]:
    """Yield the user's files that a config's classes are in: place in the app, and path.

    A module of the current folder takes its whole package along; installed packages stay what they
    are, and must be installed at the nodes.
    """
    here = Path.cwd().resolve()
    tops = {found.path.split(".")[0] for found in named_classes(config) if not found.trusted}
    for top in sorted(tops - {"torch", "torchvision"}):
        spec = importlib.util.find_spec(top) if top in sys.modules or top.isidentifier() else None
        origin = Path(spec.origin).resolve() if spec is not None and spec.origin else None
        if origin is None or not origin.is_relative_to(here) or "site-packages" in origin.parts:
            continue
        base = origin.parent if origin.name == "__init__.py" else origin
        paths = sorted(base.rglob("*.py")) if base.is_dir() else [base]
        for path in paths:
            if _DROPPED.fullmatch(path.stem):
                if path == base:
                    raise ConfigError(f"{path.name}: Flower leaves files of this name out; rename.")
                continue
            yield path.relative_to(base.parent).as_posix(), path
