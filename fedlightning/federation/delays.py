"""How long clients take, on a simulated clock: their speed, lost updates, hours of availability.

What a model of delays says depends on the client and on the number of its turn, never on other
clients, on the order in which they are asked, or on any result of training.
"""

from __future__ import annotations

import csv
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from fedlightning.core.seeding import Key
from fedlightning.core.validation import Setting, check_instance, check_number, is_number
from fedlightning.errors import ConfigError, DataError

__all__ = [
    "ByClient",
    "ByExamples",
    "ConstantDelay",
    "Delays",
    "Exponential",
    "LogNormal",
    "Trace",
    "Turn",
    "Windows",
    "delays_of",
]

_LENGTH, _LOST, _PHASE, _SPEED = range(4)


@dataclass(frozen=True)
class Turn:
    """One client update, as a model of delays knows it.

    Args:
        seed: The seed of the run.
        client: Client id.
        number: Counts the client's updates; names the random numbers of this one.
        examples: Returns a client's number of training examples.
    """

    seed: int
    client: int
    number: int
    examples: Callable[[int], int]

    @property
    def num_examples(self) -> int:
        """Number of the client's training examples."""
        return self.examples(self.client)

    def key(self, quantity: int, by_turn: bool = True) -> Key:
        """Return the random stream of one quantity, of this turn or of all turns."""
        return Key(self.seed, "delay", self.number if by_turn else 0, self.client, quantity)


class Windows(Setting):
    """Hours of availability: in each period a client may start during a share of the time only.

    Each client's window opens at a moment of its own, drawn once. A client that has started goes
    on when its window closes.

    Args:
        share: Part of each period in which the client is available, in (0, 1].
        period: Length of a period in simulated seconds.

    Example:
        >>> night = Windows(share=1 / 3, period=86_400)
        >>> turn = Turn(seed=0, client=5, number=0, examples=lambda client: 9)
        >>> opens = night.opening(turn, 0.0)
        >>> night.opening(turn, opens) == opens, night.opening(turn, opens + 86_399) - opens
        (True, 86400.0)
    """

    def __init__(self, share: float, period: float = 86_400.0) -> None:
        self.share = check_number("share", share, above=0, at_most=1)
        self.period = check_number("period", period, above=0, unit="seconds")

    def opening(self, turn: Turn, now: float) -> float:
        """Return the first moment from ``now`` at which the turn's client may start."""
        if self.share == 1:
            return now
        phase = float(turn.key(_PHASE, by_turn=False).numpy().random()) * self.period
        periods = math.floor((now - phase) / self.period)
        opened = periods * self.period + phase
        if now - opened < self.share * self.period:
            return now
        later = (periods + 1) * self.period + phase
        return max(later, now)


class Delays(Setting, ABC):
    """How many simulated seconds a client takes from reading a model until its update arrives.

    Args:
        dropout: Probability that an update is lost on its way. The client starts again at the
            moment at which it would have arrived.
        windows: When clients are available; ``None`` means always.
    """

    def __init__(self, dropout: float = 0.0, windows: Windows | None = None) -> None:
        self.dropout = check_number("dropout", dropout, at_least=0, below=1)
        self.windows = windows
        if windows is not None:
            check_instance("windows", windows, Windows)

    @abstractmethod
    def seconds(self, turn: Turn) -> float:
        """Return how long the update takes."""

    def start(self, turn: Turn, now: float) -> float:
        """Return the first moment from ``now`` at which the client is available."""
        return now if self.windows is None else self.windows.opening(turn, now)

    def is_lost(self, turn: Turn) -> bool:
        """Return whether the update never arrives."""
        return self.dropout > 0 and float(turn.key(_LOST).numpy().random()) < self.dropout

    def typical(self, turn: Turn) -> float:
        """Return the typical seconds of the client's updates, to tell slow clients from fast."""
        return self.seconds(turn)

    def files(self) -> Sequence[Path]:
        """Return the files that it reads."""
        return ()


class ConstantDelay(Delays):
    """Every update takes the same time.

    Args:
        each: Simulated seconds of an update.
        dropout: See :class:`Delays`.
        windows: See :class:`Delays`.

    Example:
        >>> ConstantDelay(2.0).seconds(Turn(seed=0, client=5, number=0, examples=lambda client: 9))
        2.0
    """

    def __init__(
        self, each: float = 1.0, dropout: float = 0.0, windows: Windows | None = None
    ) -> None:
        self.each = check_number("each", each, above=0, unit="seconds")
        super().__init__(dropout, windows)

    def seconds(self, turn: Turn) -> float:
        """Return the same for all."""
        return float(self.each)


class ByClient(Delays):
    """Every client has a time of its own.

    Args:
        times: Simulated seconds of client 0, 1, ...; further clients start over at the first.
        dropout: See :class:`Delays`.
        windows: See :class:`Delays`.

    Example:
        >>> [ByClient([1, 10]).seconds(Turn(0, client, 0, lambda client: 9)) for client in range(4)]
        [1.0, 10.0, 1.0, 10.0]
    """

    def __init__(
        self, times: Sequence[float], dropout: float = 0.0, windows: Windows | None = None
    ) -> None:
        self.times = _seconds_of_all("times", times)
        super().__init__(dropout, windows)

    def seconds(self, turn: Turn) -> float:
        """Return the client's time."""
        return self.times[turn.client % len(self.times)]


class Exponential(Delays):
    """Exponentially distributed times, drawn anew for each update.

    Args:
        mean: Mean in simulated seconds, one for all clients or one for each as in
            :class:`ByClient`.
        dropout: See :class:`Delays`.
        windows: See :class:`Delays`.

    Example:
        >>> turn = Turn(seed=0, client=5, number=0, examples=lambda client: 9)
        >>> Exponential(4.0).seconds(turn) == 2 * Exponential(2.0).seconds(turn)
        True
    """

    def __init__(
        self,
        mean: float | list[float] = 1.0,
        dropout: float = 0.0,
        windows: Windows | None = None,
    ) -> None:
        self.mean = _one_or_all("mean", mean)
        super().__init__(dropout, windows)

    def seconds(self, turn: Turn) -> float:
        """Draw the update's time."""
        return self.typical(turn) * float(turn.key(_LENGTH).numpy().exponential())

    def typical(self, turn: Turn) -> float:
        """Return the client's mean."""
        return _for_client(self.mean, turn.client)


class LogNormal(Delays):
    """Log-normally distributed times: most updates take about the median, a few much longer.

    Args:
        median: Median in simulated seconds, one for all clients or one for each as in
            :class:`ByClient`.
        sigma: Standard deviation of the logarithm.
        dropout: See :class:`Delays`.
        windows: See :class:`Delays`.

    Example:
        >>> LogNormal(3.0, sigma=0.0).seconds(Turn(0, 5, 0, lambda client: 9))
        3.0
    """

    def __init__(
        self,
        median: float | list[float] = 1.0,
        sigma: float = 1.0,
        dropout: float = 0.0,
        windows: Windows | None = None,
    ) -> None:
        self.median = _one_or_all("median", median)
        self.sigma = check_number("sigma", sigma, at_least=0)
        super().__init__(dropout, windows)

    def seconds(self, turn: Turn) -> float:
        """Draw the update's time."""
        normal = float(turn.key(_LENGTH).numpy().standard_normal())
        return self.typical(turn) * math.exp(self.sigma * normal)

    def typical(self, turn: Turn) -> float:
        """Return the client's median."""
        return _for_client(self.median, turn.client)


class ByExamples(Delays):
    """Times proportional to the client's number of examples, on devices of several speeds.

    Args:
        per_example: Simulated seconds per training example on the fastest device.
        factors: How much slower each class of devices is.
        shares: Probability of each class; each client's is drawn once. ``None`` means alike.
        overhead: Simulated seconds added to each update: its transfer, say.
        dropout: See :class:`Delays`.
        windows: See :class:`Delays`.

    Example:
        >>> phones = ByExamples(0.01, factors=[1, 10], shares=[0.7, 0.3])
        >>> turns = [Turn(0, client, 0, lambda client: 100) for client in range(20)]
        >>> sorted({phones.seconds(turn) for turn in turns})
        [1.0, 10.0]
    """

    def __init__(
        self,
        per_example: float = 0.01,
        factors: Sequence[float] = (1.0,),
        shares: Sequence[float] | None = None,
        overhead: float = 0.0,
        dropout: float = 0.0,
        windows: Windows | None = None,
    ) -> None:
        self.per_example = check_number("per_example", per_example, above=0, unit="seconds")
        self.factors = _seconds_of_all("factors", factors)
        self.overhead = check_number("overhead", overhead, at_least=0, unit="seconds")
        self.shares = None if shares is None else [float(share) for share in shares]
        if self.shares is not None and (
            len(self.shares) != len(self.factors)
            or not all(is_number(share) and share >= 0 for share in self.shares)
            or abs(sum(self.shares) - 1) > 1e-6
        ):
            raise ConfigError(
                f"shares must be {len(self.factors)} probabilities that add up to 1, one for each "
                f"of factors, got {shares!r}."
            )
        super().__init__(dropout, windows)

    def seconds(self, turn: Turn) -> float:
        """Return examples x seconds per example x the factor of the client's device."""
        one = float(turn.key(_SPEED, by_turn=False).numpy().random())
        shares = self.shares or [1 / len(self.factors)] * len(self.factors)
        place, reached = 0, shares[0]
        while one >= reached and place + 1 < len(shares):
            place += 1
            reached += shares[place]
        work = max(turn.num_examples, 1) * self.per_example
        return self.overhead + work * self.factors[place]


class Trace(Delays):
    """Times that were measured: a CSV file with the columns ``client`` and ``seconds``.

    Several rows of one client are its turns, in order, where all clients train at any time
    (``Buffered``); else the number of the commit says which. After the last it starts over. Clients
    that the file lacks take the times of another one: those of client id modulo the clients it has.

    Args:
        path: The file.
        dropout: See :class:`Delays`.
        windows: See :class:`Delays`.

    Raises:
        DataError: (when it is first asked) The file cannot be read or has other columns.
    """

    def __init__(
        self, path: str | Path, dropout: float = 0.0, windows: Windows | None = None
    ) -> None:
        self.path = str(path)
        super().__init__(dropout, windows)

    def seconds(self, turn: Turn) -> float:
        """Return the time of the client's turn."""
        times = self._times_of(turn.client)
        return times[turn.number % len(times)]

    def typical(self, turn: Turn) -> float:
        """Return the client's mean."""
        times = self._times_of(turn.client)
        return sum(times) / len(times)

    def files(self) -> Sequence[Path]:
        """Return the trace."""
        return (Path(self.path),)

    def _times_of(self, client: int) -> Sequence[float]:
        table, others = _read_trace(os.path.abspath(self.path), _changed(self.path))
        known = table.get(client)
        return known if known is not None else others[client % len(others)]


def delays_of(given: Delays | float | list[float]) -> Delays:
    """Return a model of delays: a number is seconds for all, a list is seconds by client.

    Example:
        >>> delays_of(2.0), delays_of([1, 3]).times
        (ConstantDelay(each=2.0, dropout=0.0, windows=None), [1.0, 3.0])
    """
    if isinstance(given, Delays):
        return given
    if is_number(given):
        return ConstantDelay(check_number("delays", given, above=0, unit="seconds"))
    if isinstance(given, (list, tuple)):
        return ByClient(_seconds_of_all("delays", given))
    raise ConfigError(
        "delays must be a number of seconds, a list with one for each client, or a model of "
        f"delays such as Exponential(2.0), got {given!r}."
    )


def _seconds_of_all(name: str, given: Sequence[float]) -> list[float]:
    if not isinstance(given, (list, tuple)) or not given:
        raise ConfigError(f"{name} must be a list of numbers > 0, got {given!r}.")
    return [
        float(check_number(f"{name}[{place}]", one, above=0)) for place, one in enumerate(given)
    ]


def _one_or_all(name: str, given: float | Sequence[float]) -> float | list[float]:
    if isinstance(given, (list, tuple)):
        return _seconds_of_all(name, given)
    return float(check_number(name, given, above=0, unit="seconds"))


def _for_client(given: float | list[float], client: int) -> float:
    return given[client % len(given)] if isinstance(given, list) else given


def _changed(path: str) -> int:
    """Return when a file was last changed; 0 of one that is not there."""
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0


@cache
def _read_trace(
    path: str, changed: int
) -> tuple[Mapping[int, Sequence[float]], Sequence[Sequence[float]]]:
    table: dict[int, list[float]] = {}
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = csv.DictReader(file)
            if not {"client", "seconds"} <= set(rows.fieldnames or ()):
                raise DataError(
                    f"{path}: a trace needs the columns client and seconds, it has "
                    f"{', '.join(rows.fieldnames or ()) or 'none'}."
                )
            for row in rows:
                seconds = float(row["seconds"])
                if not (math.isfinite(seconds) and seconds > 0):
                    raise ValueError(f"seconds={row['seconds']} is not a number > 0")
                table.setdefault(int(row["client"]), []).append(seconds)
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path}: this trace of delays cannot be read: {error}.") from error
    if not table:
        raise DataError(f"{path}: this trace of delays is empty.")
    return table, list(table.values())
