"""The style of all figures, without a change of matplotlib's or the user's settings."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "BLUE",
    "BLUES",
    "CYCLE",
    "GREY",
    "GRID",
    "INK",
    "MUTED",
    "RED",
    "counted",
    "headline",
    "label_at_right",
    "new_figure",
    "spaced",
    "style",
]

INK = "#1f2933"
MUTED = "#616e7c"
GREY = "#8d99a6"
GRID = "#e4e7eb"
# From the palette of Okabe and Ito, which people with any colour vision can tell apart.
BLUE = "#0072b2"
RED = "#d55e00"
CYCLE = (BLUE, RED, "#009e73", "#cc79a7", INK, "#e69f00", "#56b4e9", GREY)
BLUES = ("#dcecf6", "#9ccbe6", "#3f97cb", BLUE, "#003f66")

_SETTINGS: dict[str, Any] = {
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": GRID,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": GRID,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 9.0,
    "ytick.labelsize": 9.0,
    "xtick.major.size": 0.0,
    "ytick.major.size": 0.0,
    "legend.frameon": False,
    "legend.fontsize": 9.0,
    "text.parse_math": False,  # a client's name may have dollars in it
}


@contextlib.contextmanager
def style() -> Iterator[None]:
    """Apply this style inside the ``with`` block; restore the settings on exit."""
    import matplotlib.style

    with matplotlib.style.context(["default", _SETTINGS]):
        yield


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure, sized in inches, that is not registered with pyplot."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.08)
    figure = Figure(figsize=(width, height), layout=layout)
    FigureCanvasAgg(figure)
    return figure


def counted(number: int, noun: str) -> str:
    """Return a number with its noun.

    Example:
        >>> counted(1, "client"), counted(1200, "client")
        ('1 client', '1,200 clients')
    """
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def headline(ax: Axes, title: str, subtitle: str) -> None:
    """Add a bold title and, in grey below it, a subtitle."""
    ax.set_title(title, loc="left", fontsize=13, fontweight="bold", pad=26)
    ax.annotate(
        subtitle,
        (0, 1),
        xytext=(0, 10),
        xycoords="axes fraction",
        textcoords="offset points",
        fontsize=9.5,
        color=MUTED,
    )


def label_at_right(
    ax: Axes, heights: Sequence[float], texts: Sequence[str], colors: Sequence[str]
) -> None:
    """Write ``texts`` beside the right edge, each as close to its height as possible."""
    low, high = ax.get_ylim()
    inches = ax.get_window_extent().height / ax.figure.dpi
    gap = (high - low) * 0.19 / inches
    for y, text, color in zip(spaced(heights, gap), texts, colors, strict=True):
        ax.annotate(
            text,
            (1, y),
            xytext=(6, 0),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            va="center",
            fontsize=9.5,
            color=color,
            annotation_clip=False,
        )


def spaced(heights: Sequence[float], gap: float) -> list[float]:
    """Return ``heights`` moved apart until neighbours are at least ``gap`` apart.

    Example:
        >>> spaced([5.0, 1.0, 1.0], gap=2.0)
        [5.0, 0.0, 2.0]
    """
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    clusters: list[tuple[list[int], float]] = []
    for i in order:
        members, centre = [i], heights[i]
        while clusters:
            others, middle = clusters[-1]
            if centre - middle >= gap * (len(members) + len(others)) / 2:
                break
            clusters.pop()
            members = others + members
            centre = sum(heights[j] for j in members) / len(members)
        clusters.append((members, centre))
    placed = list(heights)
    for members, centre in clusters:
        for rank, i in enumerate(members):
            placed[i] = centre + gap * (rank - (len(members) - 1) / 2)
    return placed
