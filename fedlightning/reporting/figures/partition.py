"""The classes that each client has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fedlightning.core.client_names import short_label
from fedlightning.errors import ConfigError
from fedlightning.reporting.figures.style import (
    BLUE,
    BLUES,
    GREY,
    counted,
    headline,
    new_figure,
    style,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["partition_figure"]

_MOST_DOTS = 60
_MOST_NAMED = 30

Counts = npt.NDArray[np.integer[Any]]


def partition_figure(
    table: npt.ArrayLike,
    title: str = "Examples per client and class",
    names: Sequence[str] | None = None,
) -> Figure:
    """Draw how the data is divided over the clients.

    Up to 60 clients and 60 classes are dots whose areas are in proportion to the counts. More are a
    heat map; its colours follow the square root of the count, so that a few examples are visible
    beside many, and a class that a client does not have stays white. The bars above are the
    clients' totals.

    Args:
        table: Counts of shape (num_clients, num_classes).
        title: The headline.
        names: The clients' names, if they have any.

    Returns:
        A figure that is not registered with pyplot; see
        :func:`~fedlightning.reporting.figures.save.save_figure`.

    Raises:
        ConfigError: ``table`` is not a table of counts, or is empty.

    Example:
        >>> figure = partition_figure([[5, 0], [0, 7], [3, 3]])
        >>> [ax.get_ylabel() for ax in figure.axes]
        ['in all', 'class']
    """
    counts = np.asarray(table)
    if counts.ndim != 2 or counts.size == 0 or counts.dtype.kind not in "iu" or counts.min() < 0:
        raise ConfigError(
            "expected a table of counts of shape (num_clients, num_classes), "
            f"got {counts.dtype} of shape {counts.shape}"
        )
    clients, classes = counts.shape
    few = max(clients, classes) <= _MOST_DOTS
    height = 0.22 * classes if few else 0.06 * classes
    height = min(6.5, max(2.0, height))
    with style():
        figure = new_figure(9, height + 2.1)
        above, ax = figure.subplots(2, 1, sharex=True, height_ratios=[0.6, height])
        headline(above, title, _subtitle(counts))
        _totals(above, counts.sum(axis=1), few)
        if few:
            _dots(figure, ax, counts)
        else:
            _heat_map(figure, [above, ax], counts)
        _axes(ax, clients, classes, names)
        figure.align_ylabels([above, ax])
    return figure


def _subtitle(counts: Counts) -> str:
    totals, held = counts.sum(axis=1), (counts > 0).sum(axis=1)
    least, most = int(totals.min()), int(totals.max())
    size = f"{counted(most, 'example')} each"
    if least < most:
        size = f"{least:,} to {most:,} examples each, median {np.median(totals):,.0f}"
    classes = f"{held.mean():.1f} of {counts.shape[1]:,} classes each"
    return " · ".join([counted(counts.shape[0], "client"), size, classes])


def _totals(ax: Axes, totals: Counts, few: bool) -> None:
    if few:
        ax.bar(np.arange(len(totals)), totals, width=0.6, color=GREY)
    else:
        edges = np.arange(len(totals) + 1) - 0.5
        ax.stairs(totals, edges, fill=True, color=GREY)
    ax.set_ylabel("in all")
    ax.set_yticks([0, int(totals.max())], ["0", f"{totals.max():,}"])
    ax.set_ylim(0, max(1, int(totals.max())))
    ax.spines[["left", "bottom"]].set_visible(False)


def _dots(figure: Figure, ax: Axes, counts: Counts) -> None:
    clients, classes = counts.shape
    # Points from one dot to the next; the largest dot just fits between its neighbours.
    room = min(9 * 72 * 0.85 / clients, 6.5 * 72 / classes, 0.22 * 72)
    area = (0.98 * room) ** 2 / max(1, int(counts.max()))
    at_client, at_class = np.nonzero(counts)
    sizes = np.maximum(area * counts[at_client, at_class], 2)  # a single example is a speck
    ax.scatter(at_client, at_class, s=sizes, color=BLUE, linewidth=0)
    ax.grid(linewidth=0.5)
    for count in sorted({_rounded(int(counts.max()) // 5), _rounded(int(counts.max()))}):
        name = counted(count, "example")
        ax.scatter([], [], s=area * count, color=BLUE, linewidth=0, label=name)
    figure.legend(loc="outside lower center", ncols=3, columnspacing=2)


def _rounded(count: int) -> int:
    """Return ``count`` rounded down to its first digit, at least 1."""
    scale: int = 10 ** (len(str(count)) - 1)
    return max(1, count // scale * scale)


def _heat_map(figure: Figure, axes: list[Axes], counts: Counts) -> None:
    from matplotlib.colors import LinearSegmentedColormap, PowerNorm
    from matplotlib.ticker import MaxNLocator

    image = axes[-1].imshow(
        np.ma.masked_equal(counts.T, 0),
        cmap=LinearSegmentedColormap.from_list("blues", BLUES),
        norm=PowerNorm(0.5, vmin=0, vmax=max(1, int(counts.max()))),
        aspect="auto",
        origin="lower",
    )
    height = figure.get_figheight()
    bar = figure.colorbar(image, ax=axes, pad=0.02, aspect=5 * height, label="examples")
    bar.ax.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    bar.outline.set_visible(False)


def _axes(ax: Axes, clients: int, classes: int, names: Sequence[str] | None) -> None:
    from matplotlib.ticker import MaxNLocator

    ax.set_xlabel("client")
    ax.set_ylabel("class")
    ax.set_xlim(-0.8, clients - 0.2)
    ax.set_ylim(-0.8, classes - 0.2)
    if names is not None and clients <= _MOST_NAMED:
        labels = [short_label(client, names) for client in range(clients)]
        ax.set_xticks(range(clients), labels, rotation=35, ha="right")
    elif clients <= 25:
        ax.set_xticks(range(clients))
    else:
        ax.xaxis.set_major_locator(MaxNLocator(10, steps=[1, 2, 5, 10], integer=True))
    if classes <= 25:
        ax.set_yticks(range(classes))
    else:
        ax.yaxis.set_major_locator(MaxNLocator(10, steps=[1, 2, 5, 10], integer=True))
