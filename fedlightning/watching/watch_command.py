"""``python -m fedlightning watch``: runs under way, in the browser."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from fedlightning.cli.terminal import print_warning
from fedlightning.core.validation import check_integer
from fedlightning.errors import ConfigError, EnvironmentFailure
from fedlightning.studies.options import read_words

__all__ = ["watch"]

_VALUES = ("host", "port")
_HELP = """usage: python -m fedlightning watch DIR... [--host HOST] [--port PORT]

  DIR...             folders of runs or of a study, at any depth; they may appear later
  --host HOST        127.0.0.1 (the default): only this machine can see the page; another host shows
                     it to everybody who reaches this machine
  --port PORT        8000 by default; 0 takes a free one

A page with the progress, curves, clients and failures of the runs, brought up to date every two
seconds. It is made from the run folders alone: nothing is written, and no run is asked or slowed
down. Ctrl-C ends it; the runs go on. Needs the extra watch."""


def watch(words: Sequence[str]) -> int:
    """Serve a live page of the runs in some folders until Ctrl-C.

    Args:
        words: The arguments after ``watch``.

    Returns:
        The exit code, 0 after ``--help``; otherwise a signal ends the command.

    Raises:
        ConfigError: An option is wrong, or a folder is a file.
        EnvironmentFailure: The packages are missing, or the port is in use.
    """
    if {"-h", "--help"} & set(words):
        print(_HELP)
        return 0
    given = read_words(words, "watch", (), _VALUES)
    if given.settings:
        raise ConfigError(f"watch changes no settings: --{next(iter(given.settings))}.")
    if not given.positional:
        raise ConfigError(
            "watch expects folders: python -m fedlightning watch DIR... [--host=127.0.0.1] "
            "[--port=8000]"
        )
    folders = [Path(word) for word in given.positional]
    for folder in folders:
        if folder.exists() and not folder.is_dir():
            raise ConfigError(f"{folder} is a file; watch expects folders of runs.")
    host = str(given.values.get("host", "127.0.0.1"))
    port = check_integer("--port", given.values.get("port", 8000), at_least=0, at_most=65535)
    missing = [name for name in ("starlette", "uvicorn") if find_spec(name) is None]
    if missing:
        raise EnvironmentFailure(
            f"watch needs {' and '.join(missing)}: install the extra, fedlightning[watch]."
        )
    from fedlightning.watching.server import LivePage, is_loopback, listen, serve

    with listen(host, port) as listening:
        if not is_loopback(host):
            print_warning(
                f"--host={host}: everybody who reaches this machine can see the page; it has no "
                "login. An SSH tunnel to 127.0.0.1 does without."
            )
        shown = f"[{host}]" if ":" in host else host
        where = ", ".join(map(str, folders))
        print(
            f"watching {where}: http://{shown}:{listening.getsockname()[1]} (Ctrl-C ends this; the "
            "runs go on)",
            flush=True,
        )
        serve(LivePage(folders), host, listening)
    return 0
