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
from fedlightning.flower.settings import ServerCLI
from fedlightning.personalization.on_demand import client_words

__all__ = ["HELP", "deploy"]

HELP = """usage: python -m fedlightning deploy --config FILE (--output DIR | --local N) [--key=...]

  --output DIR       write an app for Flower: config, your modules, systemd units, and NODES.md
                     with the commands for the server and each node
  --local N          start a server and N nodes on this machine, run, stop everything; a config with
                     another number of clients gets data.num_clients=N
  --clients a,b,c    names of the clients, by number; one with a comma in quotes: 'a,"b, c"'

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
    clients = [name for name in client_words(own.get("clients", "")) if name]
    if "output" in own:
        folder = Path(own["output"])
        about = write_app(folder, _built(options), stem, clients)
        print(f"{folder}: an app for {about.num_clients} clients; NODES.md says how to run it")
        return 0
    count = _number(own["local"])
    run = _with_clients(options, count)
    work = Path(tempfile.mkdtemp(prefix="fedlightning-deploy-"))
    about = write_app(work / "app", run, stem, clients)
    code = run_here(
        work / "app", [about.client(c) for c in range(count)], work, masked=about.masked
    )
    if code:
        raise FederationError(f"the deployed run has failed; logs: {work / 'logs'}")
    print(f"all stopped; what the clients keep is in {work / 'stores'}")
    return 0


def _built(options: Sequence[str]) -> ServerCLI:
    return ServerCLI(args=["fit", *options])


def _with_clients(options: Sequence[str], count: int) -> ServerCLI:
    """Build a run that has so many clients as it is, or else with another number of them.

    Raises:
        ConfigError: It has another number that cannot be set, or the run cannot be built.
    """
    wanted = f"data.num_clients={count}"
    given = any(word.startswith("--data.num_clients") for word in options)
    has, refusals = None, list[ConfigError]()
    for more in [()] if given else [(), (f"--{wanted}",)]:
        try:
            run = _built([*options, *more])
        except ConfigError as error:  # the number may be all that the config lacks
            refusals.append(error)
            continue
        if (has := run.datamodule.num_clients) == count:
            return run
    if has is None:
        raise refusals[0]
    why = f"{wanted} is refused: {refusals[-1]}" if refusals else f"set {wanted}."
    raise ConfigError(
        f"--local {count}: the config has {has} clients, and each needs a node; {why}"
    )


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
