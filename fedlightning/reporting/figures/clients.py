"""Accuracy before and after personalization, client by client."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fedlightning.core.client_names import short_label
from fedlightning.core.main_metric import MainMetric
from fedlightning.core.statistics import Spread
from fedlightning.reporting.client_records import ClientRecord
from fedlightning.reporting.figures.style import (
    BLUE,
    GREY,
    GRID,
    MUTED,
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

__all__ = ["clients_figure"]

_MOST_DUMBBELLS = 120

Percent = npt.NDArray[np.float64]


def clients_figure(
    records: Sequence[ClientRecord],
    title: str | None = None,
    metric: MainMetric | None = None,
) -> Figure:
    """Draw every client's main metric before and after personalization, the worst on the left.

    Up to 120 clients are dumbbells, from the accuracy before to that after, ordered by the accuracy
    after. More clients are two curves, each sorted by itself, so that a curve reads as "this share
    of the clients has at most this accuracy". The worst tenth of the clients is shaded.

    Args:
        records: The clients, in any order. Those without both accuracies are left out and counted;
            a mean is over all clients with that accuracy.
        title: The headline; ``None`` makes one.
        metric: What is drawn; ``None`` means accuracy.

    Returns:
        A figure that is not registered with pyplot; see
        :func:`~fedlightning.reporting.figures.save.save_figure`.

    Example:
        >>> records = [ClientRecord(i, 80, 20, 0.5, 0.7 + i / 100, 1.0, 0.5) for i in range(20)]
        >>> clients_figure(records).axes[0].get_xlabel()
        'client id, from the worst to the best accuracy after personalization'
    """
    metric = metric or MainMetric()
    name, scale, what = metric.name, metric.scale, metric.title
    tested = [record for record in records if record.has(name)]
    before = scale * np.array([record.before(name) for record in tested], dtype=np.float64)
    after = scale * np.array([record.after(name) for record in tested], dtype=np.float64)
    title = title or f"{what[0].upper()}{what[1:]} per client, before and after personalization"
    with style():
        figure = new_figure(9, 4.6)
        ax = figure.add_subplot()
        means = [scale * Spread.of(values).mean for values in _columns(records, name)]
        headline(ax, title, _subtitle(before, after, means, records, metric))
        if not tested:
            ax.set_axis_off()
            ax.text(0.5, 0.5, "no client has test data", ha="center", color=MUTED)
            return figure
        _frame(ax, before, after, metric)
        if len(tested) <= _MOST_DUMBBELLS:
            _dumbbells(ax, before, after, [_shown(record) for record in tested], metric)
        else:
            order = slice(None, None, metric.sign)
            _curves(ax, np.sort(before)[order], np.sort(after)[order], metric)
        _means(ax, means, metric)
        figure.legend(loc="outside lower center", ncols=4, handletextpad=0.5, columnspacing=2)
    return figure


def _columns(records: Sequence[ClientRecord], name: str) -> tuple[list[float], list[float]]:
    return [record.before(name) for record in records], [record.after(name) for record in records]


def _number(value: float, metric: MainMetric, signed: bool = False) -> str:
    sign = "+" if signed else ""
    return f"{value:{sign}.1f}" if metric.is_share else f"{value:{sign}.4g}"


def _subtitle(
    before: Percent,
    after: Percent,
    means: Sequence[float],
    records: Sequence[ClientRecord],
    metric: MainMetric,
) -> str:
    words = [counted(len(after), "client")]
    if len(after):
        first, last, unit = _number(means[0], metric), _number(means[1], metric), metric.unit
        gain = _number(means[1] - means[0], metric, signed=True)
        words[0] += f": mean {first}{unit} → {last}{unit} ({gain}{' points' if unit else ''})"
        signs = metric.sign * np.sign(after - before)
        for sign, word in ((1, "better"), (0, "unchanged"), (-1, "worse")):
            if sign in signs:
                words.append(f"{(signs == sign).sum()} {word}")
    left_out = [record for record in records if not record.has(metric.name)]
    untested = sum(record.num_test == 0 for record in left_out)
    if untested:
        words.append(f"{untested:,} without test data left out")
    if undefined := len(left_out) - untested:
        words.append(f"{undefined:,} with an undefined {metric.title} left out")
    return " · ".join(words)


def _frame(ax: Axes, before: Percent, after: Percent, metric: MainMetric) -> None:
    both = np.concatenate([before, after])
    ax.set_ylabel(f"{metric.title} on own test data")
    ax.grid(axis="y")
    ax.spines["left"].set_visible(False)
    if not metric.is_share:
        ax.margins(y=0.08)
        return
    span = float(np.ptp(both))
    tick = 20 if span > 50 else 10 if span > 20 else 5
    low = max(0, tick * math.floor((both.min() - 2) / tick))
    high = min(100, tick * math.ceil((both.max() + 2) / tick))
    room = 0.025 * (high - low)
    ax.set_ylim(low - room, high + room)
    ax.set_yticks(range(low, high + 1, tick))
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:.0f} %")


def _shown(record: ClientRecord) -> str:
    return short_label(0, [record.name]) if record.name else str(record.client_id)


def _dumbbells(
    ax: Axes, before: Percent, after: Percent, ids: Sequence[str], metric: MainMetric
) -> None:
    order = np.lexsort((metric.sign * before, metric.sign * after))
    before, after = before[order], after[order]
    count = len(order)
    places = np.arange(count)
    room = 9 * 72 * 0.85 / count  # points from one client to the next
    dot = min(9.0, max(3.0, 0.62 * room))
    better = metric.sign * after >= metric.sign * before
    for chosen, color in ((better, BLUE), (~better, RED)):
        ax.vlines(
            places[chosen],
            before[chosen],
            after[chosen],
            color=color,
            alpha=0.4,
            linewidth=max(1.0, dot / 3),
        )
    common: dict[str, Any] = {
        "linestyle": "none",
        "markersize": dot,
        "markeredgewidth": max(0.8, dot / 6),
    }
    ax.plot(places, before, "o", color=GREY, markerfacecolor="white", label="before", **common)
    ax.plot(places[better], after[better], "o", color=BLUE, label="after", **common)
    if not better.all():
        ax.plot(places[~better], after[~better], "o", color=RED, label="after, worse", **common)
    margin = 0.8 if count <= 30 else 1.5
    ax.set_xlim(-margin, count - 1 + margin)
    _worst_tenth(ax, -margin, count // 10 - 0.5, after, metric)
    if count <= 30:
        named = not all(each.isdigit() for each in ids)
        style_of: dict[str, Any] = {"rotation": 35, "ha": "right"} if named else {}
        ax.set_xticks(places, [ids[i] for i in order], **style_of)
        what = "client" if named else "client id"
        ax.set_xlabel(f"{what}, from the worst to the best {metric.title} after personalization")
    else:
        ax.set_xticks([])
        ax.set_xlabel(f"clients, from the worst to the best {metric.title} after personalization")


def _curves(ax: Axes, before: Percent, after: Percent, metric: MainMetric) -> None:
    share = 100 * (np.arange(len(after)) + 0.5) / len(after)
    better = metric.sign * after >= metric.sign * before
    for where, color, alpha in ((better, BLUE, 0.12), (~better, RED, 0.2)):
        ax.fill_between(
            share, before, after, where, step="mid", color=color, alpha=alpha, linewidth=0
        )
    ax.step(share, before, where="mid", color=GREY, linewidth=2, label="before")
    ax.step(share, after, where="mid", color=BLUE, linewidth=2.2, label="after")
    ax.set_xlim(0, 100)
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:.0f} %")
    ax.set_xlabel("share of clients, each curve from its worst to its best client")
    _worst_tenth(ax, 0, 10, after, metric)


def _worst_tenth(ax: Axes, left: float, right: float, after: Percent, metric: MainMetric) -> None:
    if len(after) < 10:
        return
    tenth = 10 if metric.mode == "max" else 90
    bound = _number(float(np.percentile(after, tenth)), metric)
    label = f"worst tenth after (p{tenth}: {bound}{metric.unit})"
    ax.axvspan(left, right, color=GRID, alpha=0.55, linewidth=0, zorder=0, label=label)


def _means(ax: Axes, means: Sequence[float], metric: MainMetric) -> None:
    for mean, color in zip(means, (GREY, BLUE), strict=True):
        ax.axhline(mean, color=color, linewidth=1.1, linestyle=(0, (5, 4)), zorder=1)
    texts = [
        f"mean {word} {_number(mean, metric)}{metric.unit}"
        for word, mean in zip(("before", "after"), means, strict=True)
    ]
    label_at_right(ax, means, texts, [MUTED, BLUE])
