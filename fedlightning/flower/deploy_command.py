"""``python -m fedlightning deploy``: an app for Flower, or a try-out on this machine."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from fedlightning.cli.config.command import read_command
from fedlightning.cli.terminal import print_warning
from fedlightning.errors import ConfigError, FederationError
from fedlightning.flower.app_folder import write_app
from fedlightning.flower.local_run import run_here

__all__ = ["HELP", "deploy"]

HELP = """usage: python -m fedlightning deploy --config FILE (--output DIR | --local N) [--key=...]

  --output DIR       write an app for Flower: config, your modules, systemd units, and NODES.md
                     with the commands for the server and each node
  --local N          start a server and N nodes on this machine, run, stop everything; the config
                     then has N clients, unless --data.num_clients says so itself
  --clients a,b,c    names of the clients, by number

The same config as for fit, and the simulation's result to the last bit. See docs/deployment.md."""


def deploy(words: Sequence[str]) -> int:
    """Write an app for Flower, or run one on this machine.

    Args:
        words: The arguments after ``deploy``.

    Returns:
        The exit code.

    Raises:
        ConfigError: An option is wrong, or the run cannot be deployed.
        EnvironmentFailure: A file cannot be written, or Flower is not installed.
        FederationError: The run has failed.
    """
    if {"-h", "--help"} & set(words):
        print(HELP)
        return 0
    own, rest = _own_options(words, ("output", "local", "clients"))
    command = read_command(["deploy", *rest])
    for warning in command.warnings:
        print_warning(warning)
    options = list(command.options)
    if "--config" not in options:
        raise ConfigError("deploy expects a config: python -m fedlightning deploy --config FILE")
    stem = Path(options[options.index("--config") + 1]).stem
    if ("output" in own) == ("local" in own):
        raise ConfigError("deploy expects either --output DIR or --local N.")
    clients = [name for name in own.get("clients", "").split(",") if name]
    if "output" in own:
        folder = Path(own["output"])
        about = write_app(folder, options, stem, clients)
        print(f"{folder}: an app for {about.num_clients} clients; NODES.md says how to run it")
        return 0
    count = _number(own["local"])
    if not any(word.startswith("--data.num_clients") for word in options):
        options.append(f"--data.num_clients={count}")
    work = Path(tempfile.mkdtemp(prefix="fedlightning-deploy-"))
    about = write_app(work / "app", options, stem, clients)
    if about.num_clients != count:
        raise ConfigError(
            f"--local {count}: the config has {about.num_clients} clients, and each needs a node; "
            f"set data.num_clients={count}."
        )
    code = run_here(
        work / "app", [about.client(c) for c in range(count)], work, masked=about.masked
    )
    if code:
        raise FederationError(f"the deployed run has failed; logs: {work / 'logs'}")
    print(f"all stopped; what the clients keep is in {work / 'stores'}")
    return 0


def _own_options(words: Sequence[str], names: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Return this command's own options, and the other words.

    Example:
        >>> _own_options(["--local", "3", "--config", "a.yaml"], ["local"])
        ({'local': '3'}, ['--config', 'a.yaml'])
    """
    own: dict[str, str] = {}
    rest: list[str] = []
    left = iter(words)
    for word in left:
        name, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or name not in names:
            rest.append(word)
            continue
        value = value if equals else next(left, "")
        if not value or value.startswith("--"):
            raise ConfigError(f"--{name} expects a value, e.g. --{name}=...")
        own[name] = value
    return own, rest


def _number(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise ConfigError(f"--local expects a number of nodes, got {text!r}.")
    return int(text)
