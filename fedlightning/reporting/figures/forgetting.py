"""What the model forgets of clients while others train it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from fedlightning.core.client_names import short_label
from fedlightning.core.main_metric import MainMetric
from fedlightning.reporting.figures.style import (
    BLUE,
    GREY,
    RED,
    counted,
    headline,
    label_at_right,
    new_figure,
    style,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["forgetting_figure"]

_MOST_CLIENTS = 30


def forgetting_figure(
    rounds: Sequence[int],
    mean: Sequence[float],
    largest: Sequence[float],
    after: Mapping[int, float],
    now: Mapping[int, float],
    names: Sequence[str] | None = None,
    metric: MainMetric | None = None,
) -> Figure:
    """Draw forgetting over rounds and, for the last of them, accuracy client by client.

    Args:
        rounds: Round indices, R of them.
        mean: Mean forgetting over clients, R values; above zero is a loss in either direction.
        largest: The largest one, R values.
        after: Accuracy on a client's data right after its last turn, in 0..1, by client.
        now: The same of the model at the end; of the same clients.
        names: The clients' names, if they have any.
        metric: What the values are of; ``None`` means accuracy.

    Returns:
        A figure that is not registered with pyplot; see
        :func:`~fedlightning.reporting.figures.save.save_figure`.

    Example:
        >>> figure = forgetting_figure([1, 2], [0.1, 0.2], [0.3, 0.4], {0: 0.9}, {0: 0.5})
        >>> [ax.get_ylabel() for ax in figure.axes]
        ['forgetting', 'client']
    """
    metric = metric or MainMetric()
    with style():
        change = {client: metric.sign * (now[client] - after[client]) for client in now}
        shown = sorted(now, key=change.__getitem__)[:_MOST_CLIENTS]
        figure = new_figure(9, 4.2 + 0.16 * len(shown))
        top, below = figure.subplots(2, 1, height_ratios=[2.6, 1 + 0.16 * len(shown)])
        text = f"{metric.title} on a client's data right after its turn, minus that of the "
        if metric.mode == "min":
            text = f"{metric.title} on a client's data of the global model now, minus that of its "
        headline(
            top,
            "Forgetting",
            text + ("global model now" if metric.mode == "max" else "own right after its turn"),
        )
        _draw_curves(top, rounds, mean, largest, metric)
        _draw_clients(below, sorted(shown, reverse=True), after, now, len(now), names, metric)
    return figure


def _draw_curves(
    ax: Axes,
    rounds: Sequence[int],
    mean: Sequence[float],
    largest: Sequence[float],
    metric: MainMetric,
) -> None:
    ends, texts, colors = [], [], []
    for name, values, color in (("largest", largest, RED), ("mean", mean, BLUE)):
        numbers = metric.scale * np.asarray(values, dtype=np.float64)
        if not len(numbers):
            continue
        few = len(numbers) <= 30
        done = [index + 1 for index in rounds]
        ax.plot(done, numbers, color=color, linewidth=1.8, marker="o" if few else None,
                markersize=3.5)  # fmt: skip
        ends.append(float(numbers[-1]))
        texts.append(f"{name}  {metric.text(numbers[-1] / metric.scale)}")
        colors.append(color)
    ax.axhline(0, color=GREY, linewidth=0.8)
    if metric.is_share:
        ax.yaxis.set_major_formatter(lambda value, _: f"{value:.0f} %")
    ax.locator_params(axis="x", integer=True)
    ax.set_xlabel("rounds done")
    ax.set_ylabel("forgetting")
    ax.grid(axis="y")
    ax.spines["left"].set_visible(False)
    label_at_right(ax, ends, texts, colors)


def _draw_clients(
    ax: Axes,
    clients: Sequence[int],
    after: Mapping[int, float],
    now: Mapping[int, float],
    total: int,
    names: Sequence[str] | None,
    metric: MainMetric,
) -> None:
    places = range(len(clients))
    then, later = ([metric.scale * of[client] for client in clients] for of in (after, now))
    ax.hlines(places, then, later, color=GREY, linewidth=1.2)
    (rings,) = ax.plot(then, places, "o", color=BLUE, markersize=8, label="right after its turn")
    rings.set_fillstyle("none")
    ax.plot(later, places, "o", color=RED, markersize=5, label="now")
    ax.set_yticks(list(places), [short_label(client, names) for client in clients])
    if metric.is_share:
        ax.xaxis.set_major_formatter(lambda value, _: f"{value:.0f} %")
    what = counted(total, "client")
    if len(clients) < total:
        what = f"the {len(clients)} of {what} that are forgotten most"
    ax.set_xlabel(f"{metric.title} on the client's data: {what}")
    ax.set_ylabel("client")
    ax.grid(axis="x")
    ax.spines["left"].set_visible(False)
    if clients:
        ax.legend(loc="upper left", ncols=2, bbox_to_anchor=(0, 1.25))
