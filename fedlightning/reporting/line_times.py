"""When a run that nobody watches says how far it is: by time, and ever more rarely."""

from __future__ import annotations

import time
from collections.abc import Callable

from fedlightning.reporting.terminal import duration

__all__ = ["LineTimes"]

_FIRST = 10.0
_LEAST, _MOST = 30.0, 600.0
_SHARE = 20
_DAY = 86_400


class LineTimes:
    """Decides when a line about a run's progress is due, and says when the run will end.

    The first is due after 10 s. After one at time t, the next is due at t plus a twentieth of t, at
    least 30 s and at most 10 min: a run of 10 h prints about 120 lines.

    Args:
        first_round: Rounds that were done before, of a resumed run.
        clock: Returns seconds from any origin.

    Example:
        >>> now = iter([0.0, 9.0, 10.0, 39.0, 40.0])
        >>> times = LineTimes(clock=lambda: next(now))
        >>> [times.due() for _ in range(4)]
        [False, True, False, True]
    """

    def __init__(self, first_round: int = 0, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._started = clock()
        self.first_round = first_round
        self._next = _FIRST

    def due(self) -> bool:
        """Whether a line is due; if it is, the next one is not before some time has passed."""
        elapsed = self._clock() - self._started
        if elapsed < self._next:
            return False
        self._next = elapsed + min(max(elapsed / _SHARE, _LEAST), _MOST)
        return True

    def line(self, done: float, rounds: int) -> str:
        """Return the time so far, and when the run is expected to end.

        Args:
            done: Rounds done, the last one perhaps in part.
            rounds: All rounds; 0 means that there is no limit.

        Example:
            >>> now = iter([0.0, 60.0])
            >>> LineTimes(clock=lambda: next(now)).line(done=20, rounds=20)
            '1 min 0 s'
        """
        elapsed = self._clock() - self._started
        made, left = done - self.first_round, rounds - done
        text = duration(elapsed)
        if left <= 0 or made <= 0:
            return text
        seconds = elapsed / made * left
        form = "%H:%M" if seconds < _DAY else "%b %d %H:%M"
        end = time.strftime(form, time.localtime(time.time() + seconds))
        return f"{text}, about {duration(seconds)} left (until {end})"
