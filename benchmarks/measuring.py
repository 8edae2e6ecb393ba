"""What a command costs over its whole process tree: wall, CPU, peak memory, start-up.

The command is watched from outside through ``/proc`` (Linux), so that programs which start daemons
and workers are measured by the same rule as a plain loop. What it prints last must be one JSON
object; these of its keys are understood, anything else is for the caller:

- ``first_step``: ``time.time()`` when the first client began to train;
- ``marks``: ``time.time()`` at the start of the first round and at the end of every round.

    measured = run_measured([sys.executable, "-m", "peers.raw", "work.npz", "W1", "4"])
    median(measured.round_walls[1:]), median(measured.round_cpus[1:]), measured.peak_memory_mb
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import subprocess
import tempfile
import time
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

__all__ = ["Measured", "run_measured"]

CPU_SECONDS, TREE_SECONDS, MEMORY_SECONDS = 0.02, 0.1, 0.4  # between two looks
GRACE_SECONDS = 10.0  # for daemons to end after the command has
_PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True)
class Measured:
    """One run of a command.

    Attributes:
        wall: Seconds from start to end.
        cpu: CPU seconds of the command and of all that it started.
        peak_memory_mb: Largest sum over the tree of what each process holds (shared pages are
            divided among those that share them), in MiB, sampled.
        returncode: The command's exit status; negative is the signal that ended it.
        result: The JSON object that it printed last; empty if there was none.
        error: The last lines that it wrote to stderr.
        started: ``time.time()`` at its start.
        samples: ``time.time()`` and the CPU seconds spent until then, in ascending order.
    """

    wall: float
    cpu: float
    peak_memory_mb: float
    returncode: int
    result: dict[str, Any]
    error: str
    started: float
    samples: list[tuple[float, float]] = field(repr=False)

    @property
    def start_up(self) -> float:
        """Seconds from the start of the process to the first client step."""
        return float(self.result["first_step"]) - self.started

    @property
    def round_walls(self) -> list[float]:
        """Wall seconds of every round, from the end of the round before."""
        return [end - start for start, end in pairwise(self.result["marks"])]

    @property
    def round_cpus(self) -> list[float]:
        """CPU seconds of every round over the process tree."""
        spent = [self.cpu_until(mark) for mark in self.result["marks"]]
        return [end - start for start, end in pairwise(spent)]

    def cpu_until(self, moment: float) -> float:
        """Return the CPU seconds spent until a ``time.time()``, between samples by proportion."""
        after = bisect_left(self.samples, (moment, 0.0))
        if after in (0, len(self.samples)):
            return self.samples[max(after - 1, 0)][1]
        (t0, c0), (t1, c1) = self.samples[after - 1 : after + 1]
        return c0 + (c1 - c0) * (moment - t0) / (t1 - t0)


def run_measured(
    command: Sequence[str],
    env: Mapping[str, str] | None = None,
    cwd: Path | str | None = None,
    timeout: float = 3600,
) -> Measured:
    """Run a command to its end and say what it cost.

    Args:
        command: Program and arguments.
        env: The whole environment of the command; None is this process's.
        cwd: Folder to run it in.
        timeout: Seconds after which the command and all that it started are killed.
    """
    prctl = ctypes.CDLL(None).prctl
    prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # orphans stay in our tree
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        others = _descendants(os.getpid())
        started = time.time()
        process = subprocess.Popen(command, env=env, cwd=cwd, stdout=out, stderr=err)
        tree = _Tree(process.pid, others)
        try:
            while process.poll() is None and time.time() < started + timeout:
                tree.look()
                time.sleep(CPU_SECONDS)
            ended = time.time()
        finally:
            tree.end(process)
            prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return Measured(
            wall=ended - started,
            cpu=cpu,
            peak_memory_mb=tree.peak / 2**20,
            returncode=process.returncode,
            result=_last_object(_text(out)),
            error="\n".join(_text(err).strip().splitlines()[-15:]),
            started=started,
            samples=tree.samples,
        )


class _Tree:
    """The processes below this one, less those that were there before.

    Args:
        root: The command's process.
        others: Processes that belong to somebody else.
    """

    def __init__(self, root: int, others: set[int]) -> None:
        self.root, self.others = root, others
        self.alive, self.peak = {root}, 0
        self.spent: dict[int, float] = {}
        self.samples: list[tuple[float, float]] = [(time.time(), 0.0)]
        self._looked = self._weighed = 0.0

    def look(self) -> None:
        """Take a sample of whatever is due."""
        now = time.time()
        if now >= self._looked + TREE_SECONDS:
            self._looked = now
            self.alive = _descendants(os.getpid()) - self.others
            self._reap()
        for pid in self.alive:
            # a process that is gone keeps what it was last seen to have spent
            self.spent[pid] = max(self.spent.get(pid, 0.0), _cpu_seconds(pid))
        self.samples.append((time.time(), sum(self.spent.values())))
        if now >= self._weighed + MEMORY_SECONDS:
            self._weighed = now
            self.peak = max(self.peak, sum(_memory(pid) for pid in self.alive))

    def end(self, process: subprocess.Popen[bytes]) -> None:
        """Give what is left some time to end by itself, then kill it, and wait for all of it."""
        deadline = time.time() + (GRACE_SECONDS if process.poll() is not None else 0.0)
        while left := _descendants(os.getpid()) - self.others:
            if time.time() > deadline:
                for pid in left:
                    _kill(pid)
            process.poll()
            self._reap()
            time.sleep(CPU_SECONDS)
        process.wait()

    def _reap(self) -> None:
        """Bury orphans, whose parent is this process now; only then do their CPU seconds count."""
        for pid in _children().get(os.getpid(), []):
            if pid != self.root and pid not in self.others:
                try:
                    os.waitpid(pid, os.WNOHANG)
                except ChildProcessError:
                    continue


def _children() -> dict[int, list[int]]:
    """Return every process's children."""
    found: dict[int, list[int]] = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            stat = Path("/proc", name, "stat").read_text()
        except OSError:  # gone
            continue
        parent = int(stat.rpartition(")")[2].split()[1])
        found.setdefault(parent, []).append(int(name))
    return found


def _descendants(pid: int) -> set[int]:
    children, found, new = _children(), set[int](), [pid]
    while new:
        new = [child for parent in new for child in children.get(parent, []) if child not in found]
        found.update(new)
    return found


def _cpu_seconds(pid: int) -> float:
    """Return the process's CPU clock, all its threads together (see clock_getcpuclockid(3))."""
    try:
        return time.clock_gettime((~pid << 3) | 2)
    except OSError:
        return 0.0


def _memory(pid: int) -> int:
    """Return a process's proportional set size in bytes, 0 if it is gone."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return 1024 * int(line.split()[1])
    except OSError:
        pass
    return 0


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")


def _last_object(text: str) -> dict[str, Any]:
    for line in reversed(text.splitlines()):
        if line.startswith("{"):
            try:
                return dict(json.loads(line))
            except json.JSONDecodeError:
                continue
    return {}
