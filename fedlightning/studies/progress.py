"""Console output of ``compare`` while runs are active."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Sequence
from typing import TextIO

from fedlightning.reporting.terminal import duration
from fedlightning.studies.plan import PlannedRun
from fedlightning.studies.run_state import rounds_done

__all__ = ["Progress"]

_REDRAW = 1.0


class Progress:
    """Prints a line per finished run and, on a terminal, a live line about the active ones.

    Args:
        total: Number of runs in the study.
        done: Number of runs that were finished before.
        rounds: Number of rounds left, ``None`` if a config does not say.
        stream: The stream to print to.
    """

    def __init__(
        self, total: int, done: int, rounds: int | None, stream: TextIO | None = None
    ) -> None:
        self.total, self.done = total, done
        self._rounds = rounds
        self._stream = stream or sys.stdout
        self._live = self._stream.isatty()
        self._started = time.monotonic()
        self._drawn = -_REDRAW
        self._ended_rounds = 0
        self._before: dict[str, int] = {}

    def say(self, text: str) -> None:
        """Print a permanent line."""
        self._clear()
        print(text, file=self._stream, flush=True)

    def started(self, run: PlannedRun) -> None:
        """Report that a run starts, or resumes."""
        self._before[run.name] = at = rounds_done(run.folder)
        if at:
            self.say(f"        {run.name}: resumes after round {at}")

    def milestone(self, run: PlannedRun, line: str) -> None:
        """Forward a line about a run's rounds, unless there is a live line."""
        if not self._live:
            self.say(f"        {run.name}: {line}")

    def ended(self, run: PlannedRun, text: str, done: bool) -> None:
        """Report that a run has ended."""
        self.done += done
        self._ended_rounds += max(0, rounds_done(run.folder) - self._before.pop(run.name, 0))
        width = len(str(self.total))
        self.say(f"[{self.done:>{width}}/{self.total}] {run.name}: {text}")

    def draw(self, runs: Sequence[PlannedRun]) -> None:
        """Update the live line about the active runs, once a second."""
        if not self._live or not runs or time.monotonic() - self._drawn < _REDRAW:
            return
        self._drawn = time.monotonic()
        rounds = {run.name: rounds_done(run.folder) for run in runs}
        places = [f"{run.name} {rounds[run.name]}/{run.rounds or '?'}" for run in runs]
        text = f"{self.done}/{self.total} done{self._left(rounds)} · {' · '.join(places)}"
        columns = shutil.get_terminal_size().columns - 1
        shown = text if len(text) <= columns else f"{text[: columns - 1]}…"
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        shown = shown.encode(encoding, errors="replace").decode(encoding)
        self._stream.write(f"\r\x1b[K{shown}")
        self._stream.flush()

    def close(self) -> None:
        """Clear the live line."""
        self._clear()

    def _clear(self) -> None:
        if self._live:
            self._stream.write("\r\x1b[K")
        self._drawn = -_REDRAW

    def _left(self, rounds: dict[str, int]) -> str:
        """Return an estimate of the time left, once enough rounds have been timed."""
        fresh = sum(max(0, at - self._before.get(name, 0)) for name, at in rounds.items())
        made, elapsed = self._ended_rounds + fresh, time.monotonic() - self._started
        if self._rounds is None or made < 3 or elapsed < 10 or made >= self._rounds:
            return ""
        return f", about {duration((self._rounds - made) * elapsed / made)} left"
