"""Execute the runs of a study, several at a time, each as a ``fit`` in its own process."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from fedlightning.reporting.terminal import duration
from fedlightning.storage.files import os_errors_as_failures
from fedlightning.studies.plan import PlannedRun
from fedlightning.studies.progress import Progress
from fedlightning.studies.run_reader import final_metrics
from fedlightning.studies.run_state import LOG, RunState, State, begin, state_of

__all__ = ["RunOutcomes", "Supervisor", "run_all"]

_POLL = 0.2
_GRACE = 120.0
_MOST_NAMED = 5
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_ONE_THREAD = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
_OF_ANOTHER_RUN = re.compile(r"PL_|RANK$|LOCAL_RANK$|NODE_RANK$|WORLD_SIZE$|FEDLIGHTNING_RELAUNCH")


@dataclass(frozen=True)
class RunOutcomes:
    """The outcome of the runs.

    Args:
        failed: The runs that failed, each with its error.
        signal: The signal that ended the command, 0 for none.
    """

    failed: tuple[tuple[PlannedRun, str], ...]
    signal: int = 0

    def failures(self, total: int) -> str:
        """Return in one line which of so many runs failed, and why."""
        named = [f"{run.name}: {error}" for run, error in self.failed[:_MOST_NAMED]]
        more = len(self.failed) - len(named)
        return f"{len(self.failed)} of {total} runs failed: {'; '.join(named)}" + (
            f"; and {more} more" if more else ""
        )


class Supervisor:
    """Watches runs while they are active; this one does nothing."""

    def reason_to_stop(self, run: PlannedRun) -> str:
        """Return why an active run is stopped now, in words; empty if it goes on."""
        return ""

    def ended(self, run: PlannedRun, error: str, stopped: str, interrupted: bool) -> str:
        """Take note of how a run has ended.

        Args:
            run: The run.
            error: Its error, empty without one.
            stopped: Why it was stopped, empty if it was not.
            interrupted: Whether a signal ended the whole command before it was done.

        Returns:
            What is printed about it; by default what a study prints.
        """
        return ""


@dataclass
class _Child:
    run: PlannedRun
    state: RunState
    process: subprocess.Popen[bytes]
    log_from: int
    read_to: int
    started: float
    stopped: str = ""


def run_all(
    runs: Iterable[PlannedRun],
    workers: int,
    progress: Progress,
    lock: int | None = None,
    options: Sequence[str] = (),
    supervisor: Supervisor | None = None,
) -> RunOutcomes:
    """Execute runs, at most ``workers`` at a time; a failed run does not stop the others.

    On SIGINT or SIGTERM no further run starts and the active ones are asked to stop; they leave a
    checkpoint to resume from. A second signal kills them.

    Args:
        runs: The runs, in order; the next one is taken when it can start.
        workers: Number of processes at the same time.
        progress: Console output.
        lock: A file descriptor that the processes inherit.
        options: Options appended to each command line.
        supervisor: May stop runs before they are done.
    """
    supervisor = supervisor or Supervisor()
    waiting, active, more = iter(runs), list[_Child](), True
    failed: list[tuple[PlannedRun, str]] = []
    with _signals() as received:
        signals_sent, deadline = 0, 0.0
        while more or active:
            if received and signals_sent < min(len(received), 2):
                signals_sent = min(len(received), 2)
                more = False
                deadline = time.monotonic() + _GRACE
                if signals_sent == 1 and active:
                    progress.say("stopping after the current clients ... (again: at once)")
                _tell(active, signal.SIGTERM if signals_sent == 1 else signal.SIGKILL)
            elif signals_sent and time.monotonic() > deadline:
                _tell(active, signal.SIGKILL)
            while more and len(active) < workers:
                run = next(waiting, None)
                if run is None:
                    more = False
                    break
                active.append(_start(run, lock, options))
                progress.started(run)
            for child in [child for child in active if child.process.poll() is not None]:
                active.remove(child)
                if error := _end(child, progress, signals_sent > 0, supervisor):
                    failed.append((child.run, error))
            for child in active:
                _forward(child, progress)
                if not (child.stopped or signals_sent):
                    child.stopped = supervisor.reason_to_stop(child.run)
                    _tell([child] if child.stopped else [], signal.SIGTERM)
            progress.draw([child.run for child in active])
            if active:
                _wait(active)
    progress.close()
    return RunOutcomes(tuple(failed), received[0] if received else 0)


def _start(run: PlannedRun, lock: int | None, options: Sequence[str]) -> _Child:
    state, words = begin(run, state_of(run))
    path = run.folder / LOG
    with os_errors_as_failures("write", path), path.open("ab") as log:
        at = log.tell()
        process = subprocess.Popen(
            [sys.executable, "-m", "fedlightning", *words, *options],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=_environment(os.environ),
            pass_fds=(lock,) if lock is not None else (),
            start_new_session=True,  # Ctrl+C is passed on by this process
        )
    return _Child(run, state, process, at, at, time.monotonic())


def _environment(own: Mapping[str, str]) -> dict[str, str]:
    kept = {name: value for name, value in own.items() if not _OF_ANOTHER_RUN.match(name)}
    folder = str(Path(__file__).resolve().parents[2])  # this package, wherever it is
    paths = [path for path in kept.get("PYTHONPATH", "").split(os.pathsep) if path]
    kept["PYTHONPATH"] = os.pathsep.join([*paths, *([] if folder in paths else [folder])])
    defaults = {**dict.fromkeys(_ONE_THREAD, "1"), "PYTHONUNBUFFERED": "1"}
    return {**defaults, **kept}


def _end(child: _Child, progress: Progress, interrupted: bool, supervisor: Supervisor) -> str:
    """Record how a run has ended; return its error, or an empty string."""
    _forward(child, progress)
    code, seconds = child.process.returncode, time.monotonic() - child.started
    code = code if code >= 0 else 128 - code
    was_stopped = code in (130, 143, 137) and (interrupted or bool(child.stopped))
    error = ""
    state: State
    if code == 0:
        shown = ", ".join(f"{key} {value:.3f}" for key, value in final_metrics(child.run.folder))
        state, text = "done", f"done in {duration(seconds)}; {shown}".rstrip("; ")
    elif was_stopped:
        state, text = "interrupted", child.stopped or "interrupted"
    else:
        error = _error(child) or f"exit code {code}; see {child.run.folder / LOG}"
        state, text = "failed", f"FAILED after {duration(seconds)}: {error}"
    child.state.ended(code, state, seconds, error).write(child.run.folder)
    unfinished = was_stopped and not child.stopped
    text = supervisor.ended(child.run, error, child.stopped, unfinished) or text
    progress.ended(child.run, text, code == 0 or bool(was_stopped and child.stopped))
    return error


def _error(child: _Child) -> str:
    """Return the last error in the run's log."""
    with (child.run.folder / LOG).open("rb") as log:
        log.seek(child.log_from)
        lines = log.read().decode(errors="replace").splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    if errors:
        return errors[-1].removeprefix("error: ")
    if child.process.returncode < 0:
        number = -child.process.returncode
        return f"killed by {signal.Signals(number).name}" + (
            " (out of memory?)" if number == signal.SIGKILL else ""
        )
    return ""


def _forward(child: _Child, progress: Progress) -> None:
    """Forward what the run has printed about its rounds."""
    with (child.run.folder / LOG).open("rb") as log:
        log.seek(child.read_to)
        new = log.read()
    whole = new[: new.rfind(b"\n") + 1]
    child.read_to += len(whole)
    for line in whole.decode(errors="replace").splitlines():
        if re.match(r"Round \d+/", line):
            progress.milestone(child.run, line.strip())


def _wait(children: Sequence[_Child]) -> None:
    """Wait briefly, or until a run ends."""
    until = time.monotonic() + _POLL
    while time.monotonic() < until and all(child.process.poll() is None for child in children):
        time.sleep(_POLL / 10)


def _tell(children: Sequence[_Child], number: int) -> None:
    for child in children:
        try:
            if number == signal.SIGKILL:
                os.killpg(child.process.pid, number)  # including its workers
            else:
                child.process.send_signal(number)
        except ProcessLookupError:
            continue


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Record signals inside the ``with`` block, without acting on them."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)

    before = {number: signal.signal(number, note) for number in _SIGNALS}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
