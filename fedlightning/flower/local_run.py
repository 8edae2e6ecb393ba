"""A server and its nodes as processes of this machine: started, watched, stopped."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from fedlightning.deployment.identities import write_keys
from fedlightning.errors import EnvironmentFailure, FederationError

__all__ = [
    "DONE",
    "Processes",
    "environment",
    "follow",
    "free_port",
    "kill_all_of",
    "run_here",
    "wait_until_ready",
]

DONE = "the deployed run is over"
"""What the server prints at the end: ``flwr run`` also ends well when it loses the connection."""


_READY = 60.0
_GRACE = 10.0
_LOG_LINES = 15


def environment(home: Path) -> dict[str, str]:
    """Return the environment of Flower's processes: offline, quiet, quick.

    Args:
        home: Flower's folder.
    """
    package = str(Path(__file__).resolve().parents[2])
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    return {
        **os.environ,
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
        "PYTHONUNBUFFERED": "1",
        "PYTHONPATH": os.pathsep.join([*paths, *([] if package in paths else [package])]),
        # Flower starts its processes by name
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
    }


def free_port() -> int:
    """Return a port of this machine that nothing listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


class Processes:
    """Starts processes, each with a log, and stops them all, children included.

    Args:
        logs: Folder of the logs.
        variables: Environment of the processes.
    """

    def __init__(self, logs: Path, variables: Mapping[str, str]) -> None:
        self.logs = logs
        self._variables = dict(variables)
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        logs.mkdir(parents=True, exist_ok=True)

    def start(self, name: str, words: Sequence[str]) -> subprocess.Popen[bytes]:
        """Start a process.

        Args:
            name: Name of its log.
            words: Its command.

        Raises:
            EnvironmentFailure: There is no such command.
        """
        path = shutil.which(words[0], path=self._variables["PATH"])
        if path is None:
            raise EnvironmentFailure(
                f"{words[0]} is not installed; pip install 'fedlightning[flower]'."
            )
        with (self.logs / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [path, *words[1:]],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._variables,
                start_new_session=True,
            )
        self._running[name] = process
        return process

    def check(self) -> None:
        """Raise if a process has ended.

        Raises:
            FederationError: One has; the end of its log is shown.
        """
        for name, process in self._running.items():
            if (code := process.poll()) is not None:
                lines = (self.logs / f"{name}.log").read_text(errors="replace").splitlines()
                end = "\n".join(lines[-_LOG_LINES:])
                raise FederationError(f"{name} ended with exit code {code}:\n{end}")

    def family(self, name: str) -> list[int]:
        """Return a process and all that it has started, directly or not."""
        return _family(self._running[name].pid)

    def kill(self, name: str) -> None:
        """Kill a process, and all that it has started, at once."""
        for number in self.family(name):
            _signal(number, signal.SIGKILL)
        self._running.pop(name).wait()

    def stop(self) -> None:
        """Stop all, the last one first."""
        running = list(reversed(self._running.values()))
        self._running = {}
        for process in running:
            _signal(process.pid, signal.SIGTERM)
        end = time.monotonic() + _GRACE
        for process in running:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(end - time.monotonic(), 0.1))
        kill_all_of(Path(self._variables["FLWR_HOME"]))
        for process in running:
            if process.poll() is None:
                process.kill()
                process.wait()


def kill_all_of(home: Path) -> None:
    """Kill all processes that were started with a folder as Flower's, where the system lists them.

    Flower gives its own processes sessions of their own, so they outlive what has started them.

    Args:
        home: The folder.
    """
    mark = f"FLWR_HOME={home}".encode()
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            number = int(path.parent.name)
            if number != os.getpid() and mark in path.read_bytes().split(b"\0"):
                _signal(number, signal.SIGKILL)


def _signal(number: int, what: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(number, what)


def _family(ancestor: int) -> list[int]:
    """Return a process and its descendants, where the system lists them."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parent = int(path.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(path.parent.name))
    found = [ancestor]
    for number in found:
        found += children.get(number, [])
    return found


@contextmanager
def _stopping(processes: Processes) -> Iterator[None]:
    def on_term(*_: object) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, on_term)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        processes.stop()


def wait_until_ready(port: int, processes: Processes) -> None:
    """Wait until a SuperLink without TLS answers.

    Raises:
        FederationError: It ends, or does not answer in time.
    """
    until = time.monotonic() + _READY
    while time.monotonic() < until:
        processes.check()
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise FederationError(f"the SuperLink does not answer on port {port} within {_READY:.0f} s.")


def run_here(
    app: Path,
    clients: Sequence[str],
    work: Path,
    say: Callable[[str], None] = print,
    masked: bool = False,
) -> int:
    """Start a server and a node for each client on loopback, run an app, stop everything.

    Args:
        app: The app's folder.
        clients: The clients as a node's config names them.
        work: Folder of logs and stores.
        say: Gets what the run prints, line by line.
        masked: Whether nodes mask what they send; then they get keys.

    Returns:
        The exit code of ``flwr run``; 5 if the run has failed.
    """
    if masked:
        write_keys(work / "keys", [client.strip('"') for client in clients])
    home, port = work / "flwr", free_port()
    home.mkdir(parents=True, exist_ok=True)
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "here"\n[superlink.here]\naddress = "127.0.0.1:{port}"\n'
        "insecure = true\n"
    )
    variables = environment(home)
    processes = Processes(work / "logs", variables)
    with _stopping(processes):
        processes.start(
            "superlink",
            ["flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", str(port),
             "--disable-runtime-dependency-installation"],
        )  # fmt: skip
        wait_until_ready(port, processes)
        for number, client in enumerate(clients):
            plain = client.strip('"')
            config = f'client={client} store="{work / "stores" / plain}"'
            if masked:
                config += f' key="{work / "keys" / f"node-{plain}"}" peers="{work / "keys"}"'
            processes.start(
                f"node-{number}",
                ["flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{port}",
                 "--host", "127.0.0.1", "--port", str(free_port()),
                 "--node-config", config],
            )  # fmt: skip
        say(f"a server and {len(clients)} nodes are starting; logs: {processes.logs}")
        return follow(app, processes, variables, say)


def follow(
    app: Path,
    processes: Processes,
    variables: Mapping[str, str],
    say: Callable[[str], None],
    *options: str,
) -> int:
    """Run ``flwr run`` on an app, and hand on what the server prints.

    Args:
        app: The app's folder.
        processes: Those that must stay alive.
        variables: Environment of the command.
        say: Gets the lines.
        *options: More options of ``flwr run``.

    Returns:
        Its exit code; 5 if the run has failed.
    """
    flwr = shutil.which("flwr", path=variables["PATH"])
    if flwr is None:
        raise EnvironmentFailure("flwr is not installed; pip install 'fedlightning[flower]'.")
    run = subprocess.Popen(
        [flwr, "run", str(app), "here", "--stream", *options],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=dict(variables),
        text=True,
        errors="replace",
    )
    done = False
    assert run.stdout is not None, "it is a pipe"
    try:
        for line in run.stdout:
            done = done or line.startswith(DONE)
            say(line.rstrip("\n"))
            processes.check()
        code = run.wait()
    finally:
        if run.poll() is None:
            run.kill()
            run.wait()
        run.stdout.close()
    return code if code or done else 5
