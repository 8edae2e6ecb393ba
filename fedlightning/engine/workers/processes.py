"""Processes seen from outside: why one ended, whether it is stopped; guarding their start."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

__all__ = ["LAUNCHER", "StartGuard", "host_name", "is_stopped", "kill", "why_ended"]

LAUNCHER = "FEDLIGHTNING_LAUNCHER_PID"
"""Environment variable in which a worker finds the process that has started it."""

_LONGEST_START = 1800.0  # seconds, Lightning's own limit


def why_ended(returncode: int | None) -> str:
    """Return how a child process ended, in words.

    Example:
        >>> why_ended(-9), why_ended(3), why_ended(None)
        ('died (signal 9)', 'ended with exit code 3', 'died')
    """
    if returncode is None:
        return "died"
    if returncode < 0:
        return f"died (signal {-returncode})"
    return f"ended with exit code {returncode}"


def is_stopped(pid: int) -> bool | None:
    """Whether a process of this machine is stopped (SIGSTOP, Ctrl-Z); ``None`` if unknown.

    Example:
        >>> is_stopped(os.getpid()) in (False, None)
        True
    """
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return status.rpartition(")")[2].split()[0] in "Tt"


def kill(pid: int) -> None:
    """End a process, stopped or not."""
    if pid > 0:
        try:
            os.kill(pid, signal.SIGKILL)
        except OSError:
            return


def host_name() -> str:
    """Return a name of this machine, or of the container, within which process ids mean the same.

    Example:
        >>> host_name() == host_name()
        True
    """
    try:
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        namespace = ""
    return f"{socket.gethostname()} {namespace}"


class StartGuard:
    """Ends this process if others are lost while it waits for them, before they are connected.

    Args:
        children: The workers that this process has started.
        give_up: Called with what happened; must end the process.
    """

    def __init__(
        self, children: Sequence[subprocess.Popen[bytes]], give_up: Callable[[int, str], None]
    ) -> None:
        self._children = children
        self._give_up = give_up
        self._launcher = int(os.environ.get(LAUNCHER, "0")) if not children else 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="start-guard")

    def __enter__(self) -> StartGuard:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        limit = time.monotonic() + _LONGEST_START
        while not self._over.wait(0.2):
            for rank, child in enumerate(self._children, start=1):
                if child.poll() is not None:
                    self._give_up(rank, f"{why_ended(child.returncode)} before the run started")
            if self._launcher not in (0, os.getpid(), os.getppid()):
                print("error: worker 0 died before the run started", file=sys.stderr, flush=True)
                os._exit(5)
            if time.monotonic() > limit:
                self._give_up(-1, f"not all workers came within {_LONGEST_START:.0f} s")
