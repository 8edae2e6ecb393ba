"""Terminal output: colours, characters, histograms, and readable durations."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TextIO

import numpy as np

__all__ = ["INDENT", "Painter", "bars", "duration"]

INDENT = "  "

_BARS = " ▁▂▃▄▅▆▇█"
_BINS = 20
# Each replacement is as wide as what it replaces, so that columns stay aligned.
_PLAIN = {"± ": "+-", "─": "-", "·": "|", "▕": "|", "▏": "|"}
_PLAIN |= dict(zip(_BARS[1:], ".:-=+*%@", strict=True))


@dataclass(frozen=True)
class Painter:
    r"""Colours text, and replaces characters that a stream cannot encode.

    Args:
        color: Whether to write ANSI colours.
        encoding: Encoding of the stream.

    Example:
        >>> Painter(color=False, encoding="ascii").printable("─ 5 ± 1.0 ─")
        '- 5 +-1.0 -'
        >>> Painter(color=True, encoding="utf-8").paint("bold", "FedBABU")
        '\x1b[1mFedBABU\x1b[0m'
    """

    color: bool
    encoding: str

    @classmethod
    def for_stream(cls, stream: TextIO, color: bool | None = None) -> Painter:
        """Return the painter for a stream, by default in colour on a terminal that supports it.

        ``NO_COLOR`` in the environment turns colours off (https://no-color.org); so does
        ``TERM=dumb``.
        """
        if color is None:
            wanted = not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
            color = wanted and stream.isatty()
        return cls(color, getattr(stream, "encoding", None) or "utf-8")

    def paint(self, look: str, text: str) -> str:
        """Return ``text`` in a style: ``bold``, ``dim``, ``green``, ``yellow`` or ``blue``."""
        code = {"bold": 1, "dim": 2, "green": 32, "yellow": 33, "blue": 34}[look]
        return f"\x1b[{code}m{text}\x1b[0m" if self.color and text else text

    def printable(self, text: str) -> str:
        """Return ``text`` unchanged if the stream can encode it, else in plain ASCII."""
        try:
            "".join(_PLAIN).encode(self.encoding)
        except UnicodeEncodeError:
            for fancy, plain in _PLAIN.items():
                text = text.replace(fancy, plain)
        # A folder's name may hold characters that the stream lacks.
        return text.encode(self.encoding, errors="backslashreplace").decode(self.encoding)


def bars(histograms: Sequence[Sequence[float]]) -> list[str]:
    """Return each list of numbers in 0..1 as a one-line histogram, all on one scale.

    Twenty bins of 5 points, the last one closed on both sides. A bin with one client is visible.

    Example:
        >>> bars([[0.0, 0.5, 0.5, 1.0], [1.0]])
        ['▄         █        ▄', '                   ▄']
    """
    edges = np.linspace(0, 1, _BINS + 1)
    counts = [np.histogram([v for v in values if v == v], edges)[0] for values in histograms]
    most = max((int(count.max()) for count in counts), default=0)
    levels = len(_BARS) - 1
    return [
        "".join(_BARS[-(-levels * int(count) // most)] if count else " " for count in row)
        for row in counts
    ]


def duration(seconds: float) -> str:
    """Return a time in its two largest units.

    Example:
        >>> [duration(s) for s in (0.42, 59.96, 192.4, 7500, 100_000)]
        ['0.4 s', '1 min 0 s', '3 min 12 s', '2 h 5 min', '1 d 3 h']
    """
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for size, unit, smaller, small_unit in (
        (86_400, "d", 3_600, "h"),
        (3_600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // smaller} {small_unit}"
    raise AssertionError("unreachable: 60 s and more have a unit")
