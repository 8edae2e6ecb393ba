"""When clients trained, on which model, and when their updates were merged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedlightning.core.client_names import short_label
from fedlightning.reporting.figures.style import (
    BLUES,
    GREY,
    RED,
    counted,
    headline,
    new_figure,
    style,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["TimelineEntry", "timeline_figure"]

_MOST_BARS = 250
_MOST_CLIENTS = 30


@dataclass(frozen=True)
class TimelineEntry:
    """One client update on the simulated clock.

    Args:
        round: The commit that has merged it.
        client: Client id.
        version: The model that it started from: the number of commits behind it.
        start: Simulated time at which the client read that model.
        arrival: Simulated time at which its update arrived.
        merged: Simulated time of the commit.
    """

    round: int
    client: int
    version: int
    start: float
    arrival: float
    merged: float

    @property
    def staleness(self) -> int:
        """Commits between the model that it started from and the one that it was merged into."""
        return self.round - self.version


def timeline_figure(
    entries: Sequence[TimelineEntry], title: str = "Timeline", names: Sequence[str] | None = None
) -> Figure:
    """Draw a bar from each update's start to its arrival, and a line at each commit.

    A bar is the darker the staler its update was when it was merged. At most 30 clients and about
    250 bars are drawn, from the beginning.

    Args:
        entries: The updates, in the order in which they were merged.
        title: The headline.
        names: The clients' names, if they have any.

    Returns:
        A figure that is not registered with pyplot; see
        :func:`~fedlightning.reporting.figures.save.save_figure`.

    Example:
        >>> entries = [TimelineEntry(0, 4, 0, 0.0, 1.0, 1.0), TimelineEntry(1, 7, 0, 0.0, 3.0, 3.0)]
        >>> figure = timeline_figure(entries)
        >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
        ['4', '7']
    """
    shown, clients = _shown(entries)
    places = {client: place for place, client in enumerate(clients)}
    commits = sorted({entry.merged for entry in shown})
    stalest = max((entry.staleness for entry in shown), default=0)
    with style():
        figure = new_figure(9, 1.7 + 0.24 * max(len(clients), 3))
        ax = figure.subplots()
        headline(ax, title, _subtitle(entries, shown, clients))
        for moment in commits:
            ax.axvline(moment, color=RED, linewidth=0.7, alpha=0.6, zorder=0)
        for level in range(len(BLUES)):
            bars = [entry for entry in shown if _level(entry.staleness, stalest) == level]
            if bars:
                ax.barh(
                    [places[entry.client] for entry in bars],
                    [entry.arrival - entry.start for entry in bars],
                    left=[entry.start for entry in bars],
                    height=0.62,
                    color=BLUES[level],
                    edgecolor="white",
                    linewidth=0.8,
                    label=_range_of(level, stalest),
                )
        for entry in shown:
            if entry.merged > entry.arrival:  # it waited for the others of its commit
                ax.plot(
                    [entry.arrival, entry.merged], [places[entry.client]] * 2,
                    color=GREY, linewidth=0.8, linestyle=":",
                )  # fmt: skip
        ax.set_yticks(range(len(clients)), [short_label(client, names) for client in clients])
        ax.invert_yaxis()
        ax.set_ylabel("client")
        ax.set_xlabel("simulated seconds (red: commits)")
        ax.margins(x=0.01)
        if stalest:
            ax.legend(title="staleness", loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def _shown(entries: Sequence[TimelineEntry]) -> tuple[list[TimelineEntry], list[int]]:
    """Return the first entries of the first clients, and these clients."""
    clients = sorted({entry.client for entry in entries[: 4 * _MOST_BARS]})[:_MOST_CLIENTS]
    known = set(clients)
    return [entry for entry in entries if entry.client in known][:_MOST_BARS], clients


def _subtitle(
    entries: Sequence[TimelineEntry], shown: Sequence[TimelineEntry], clients: Sequence[int]
) -> str:
    everyone = len({entry.client for entry in entries})
    parts = [counted(len(shown), "update"), counted(len({e.round for e in shown}), "commit")]
    if len(shown) < len(entries):
        parts[0] = f"the first {len(shown):,} of {counted(len(entries), 'update')}"
    if len(clients) < everyone:
        parts.append(f"{len(clients)} of {counted(everyone, 'client')}")
    return " · ".join(parts)


def _level(staleness: int, stalest: int) -> int:
    """Return which of the colours an update has."""
    return round(staleness * (len(BLUES) - 1) / stalest) if stalest else 1


def _range_of(level: int, stalest: int) -> str:
    values = [value for value in range(stalest + 1) if _level(value, stalest) == level]
    if not values:
        return "0"
    return str(values[0]) if len(values) == 1 else f"{values[0]} to {values[-1]}"
