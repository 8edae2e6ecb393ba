"""Clients ranked by their influence, and estimates beside what leaving them out does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fedlightning.core.client_names import short_label
from fedlightning.reporting.figures.style import (
    BLUE,
    GREY,
    MUTED,
    RED,
    counted,
    headline,
    new_figure,
    style,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["influence_figure", "leave_one_out_figure"]

_MOST_NAMED = 40


def influence_figure(
    clients: Sequence[int],
    values: Sequence[float],
    metric: str,
    what: str = "Estimated influence",
    names: Sequence[str] | None = None,
) -> Figure:
    """Draw each client's influence on a metric, the lowest on the left.

    Args:
        clients: Client ids.
        values: How the metric would change without each of them; nan is left out and counted.
        metric: Its name.
        what: The beginning of the headline.
        names: The clients' names, if they have any.

    Returns:
        A figure that is not registered with pyplot; see
        :func:`~fedlightning.reporting.figures.save.save_figure`.

    Example:
        >>> influence_figure([4, 7], [0.02, -0.01], "global/loss").axes[0].get_ylabel()
        'change of global/loss without the client'
    """
    known = [
        (value, client) for client, value in zip(clients, values, strict=True) if value == value
    ]
    known.sort()
    heights = np.array([value for value, _ in known])
    words = [counted(len(known), "client")]
    for sign, word in ((heights < 0, "lower"), (heights > 0, "raise")):
        if sign.any():
            words.append(f"removing {int(sign.sum()):,} would {word} it")
    if missing := len(clients) - len(known):
        words.append(f"{missing:,} without a number left out")
    with style():
        figure = new_figure(9, 4.2)
        ax = figure.add_subplot()
        headline(ax, f"{what} of single clients on {metric}", " · ".join(words))
        places = np.arange(len(known))
        ax.bar(places, heights, width=0.7, color=np.where(heights < 0, RED, BLUE).tolist())
        ax.axhline(0, color=GREY, linewidth=1)
        ax.grid(axis="y")
        ax.spines["left"].set_visible(False)
        ax.set_ylabel(f"change of {metric} without the client")
        if len(known) <= _MOST_NAMED:
            style_of: dict[str, Any] = {"rotation": 35, "ha": "right"} if names else {}
            ax.set_xticks(places, [short_label(client, names) for _, client in known], **style_of)
            what = "client" if names else "client id"
            ax.set_xlabel(f"{what}, from the lowest to the highest")
        else:
            ax.set_xticks([])
            ax.set_xlabel("clients, from the lowest to the highest")
    return figure


def leave_one_out_figure(
    clients: Sequence[int],
    truth: Sequence[float],
    estimates: Sequence[float],
    metric: str,
    correlation: float,
    names: Sequence[str] | None = None,
) -> Figure:
    """Draw each client's estimated influence over the one that leaving it out has shown.

    Args:
        clients: Client ids.
        truth: The change of the metric in a run without the client.
        estimates: The estimated change.
        metric: The metric's name.
        correlation: Spearman's rank correlation of both, for the subtitle.
        names: The clients' names, if they have any.

    Returns:
        A figure that is not registered with pyplot.

    Example:
        >>> figure = leave_one_out_figure([0, 1], [0.1, -0.1], [0.2, -0.1], "global/loss", 1.0)
        >>> figure.axes[0].get_xlabel()
        'change of global/loss in a run without the client'
    """
    with style():
        figure = new_figure(6, 5.4)
        ax = figure.add_subplot()
        words = [counted(len(clients), "client")]
        if correlation == correlation:
            words.append(f"Spearman's rank correlation {correlation:.3f}")
        headline(ax, f"Influence on {metric}", " · ".join(words))
        ax.axline((0, 0), slope=1, color=GREY, linewidth=1, linestyle=(0, (5, 4)))
        ax.plot(truth, estimates, "o", color=BLUE, markersize=6, alpha=0.8)
        _name(ax, [short_label(client, names) for client in clients], truth, estimates)
        ax.grid()
        ax.set_xlabel(f"change of {metric} in a run without the client")
        ax.set_ylabel("estimated change")
        ax.margins(0.1)
    return figure


def _name(ax: Axes, clients: Sequence[str], xs: Sequence[float], ys: Sequence[float]) -> None:
    if len(clients) > _MOST_NAMED:
        return
    for client, x, y in zip(clients, xs, ys, strict=True):
        ax.annotate(
            client, (x, y), xytext=(5, 3), textcoords="offset points", fontsize=8, color=MUTED
        )
