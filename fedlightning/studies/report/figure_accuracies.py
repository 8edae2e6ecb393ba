"""Figures of the accuracies over clients, variant by variant."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from fedlightning.core.main_metric import MainMetric
from fedlightning.core.views import HELD_OUT
from fedlightning.reporting.figures.style import (
    GREY,
    INK,
    MUTED,
    counted,
    headline,
    new_figure,
    spaced,
    style,
)
from fedlightning.studies.report.figure_svg import Look
from fedlightning.studies.results import Group
from fedlightning.studies.run_reader import Numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["distributions_figure", "fairness_figure", "shares_figure"]

_MOST_DOTS = 400


def distributions_figure(groups: Sequence[Group], looks: dict[str, Look], view: str = "") -> Figure:
    """Draw boxes for each variant before (grey) and after personalization, all seeds together.

    A box is the middle half with the median, whiskers reach from the tenth to the ninetieth
    percentile, a dot is a client of a seed (of many, a regular sample).
    """
    rows = [(group, name) for group in groups for name in ("acc_before", "acc_after")]
    with style():
        figure = new_figure(10.5, 0.24 * len(rows) + 0.12 * len(groups) + 1.5)
        ax = figure.subplots()
        heights = []
        for at, (group, name) in enumerate(rows):
            height = -(at + 0.5 * (at // 2))
            heights.append(height)
            after = name == "acc_after"
            _box(ax, height, _pooled(group, name, view), looks[group.variant][0] if after
                 else GREY)  # fmt: skip
        middles = [(heights[2 * at] + heights[2 * at + 1]) / 2 for at in range(len(groups))]
        ax.set_yticks(middles, [group.variant for group in groups], color=INK)
        ax.set_ylim(min(heights) - 0.8, 0.8)
        metric = _metric(groups)
        if metric.is_share:
            ax.set_xlim(-2, 102)
        own = view in ("", HELD_OUT)
        where = "on a client's own test data" if own else f"in the view {view}"
        ax.set_xlabel(f"{metric.title} {where}{_unit(metric)}")
        ax.grid(axis="x", linewidth=0.6)
        ax.spines["left"].set_visible(False)
        number = max((_pooled(group, "acc_after", view).size for group in groups), default=0)
        headline(
            ax,
            f"{metric.title[0].upper()}{metric.title[1:]} per client",
            f"grey: before personalization · coloured: after · up to "
            f"{counted(number, 'client')} of all seeds together",
        )
    return figure


def shares_figure(groups: Sequence[Group], looks: dict[str, Look]) -> Figure:
    """Draw, for each value of the main metric, the share of clients with at most that value."""
    metric = _metric(groups)
    with style():
        figure = new_figure(10.5, 3.9)
        ax = figure.subplots()
        for group in groups:
            values = np.sort(_pooled(group, "acc_after"))
            if not values.size:
                continue
            shares = 100 * np.arange(1, values.size + 1) / values.size
            colour, dashes = looks[group.variant]
            ax.step(
                np.concatenate([values[:1], values]),
                np.concatenate([[0.0], shares]),
                where="post",
                color=colour,
                linestyle=dashes,
                linewidth=1.6,
                label=group.variant,
            )
        ax.set_xlabel(f"{metric.title} after personalization{_unit(metric)}")
        ax.set_ylabel(f"clients with at most that {metric.title} (%)")
        ax.set_ylim(0, 101)
        ax.grid(linewidth=0.6)
        what = "accuracies" if metric.is_share else metric.title
        better = "lower on the left: fewer low" if metric.mode == "max" else "higher: more low"
        headline(ax, f"Cumulative {what}", f"{better} {what}")
        ax.legend(loc="upper left", ncols=2 if len(groups) > 6 else 1)
    return figure


def fairness_figure(groups: Sequence[Group], looks: dict[str, Look]) -> Figure:
    """Draw mean against worst tenth: a small dot for each seed, a large one for their mean."""
    with style():
        figure = new_figure(7.5, 4.8)
        ax = figure.subplots()
        places: list[tuple[float, float, str]] = []
        metric = _metric(groups)
        for group in groups:
            each = [metric.scale * run.values("acc_after") for run in group.runs.values()]
            spreads = [metric.spread(values) for values in each if values.size]
            points = np.array([(spread.mean, spread.worst_decile) for spread in spreads])
            if not points.size:
                continue
            colour = looks[group.variant][0]
            ax.scatter(points[:, 0], points[:, 1], s=14, color=colour, alpha=0.5, linewidth=0)
            x, y = points.mean(axis=0)
            ax.scatter([x], [y], s=70, color=colour, linewidth=0)
            places.append((float(x), float(y), group.variant))
        ax.set_xlabel(f"mean {metric.title} over clients{_unit(metric)}")
        ax.set_ylabel(f"mean {metric.title} of the worst tenth{_unit(metric)}")
        ax.grid(linewidth=0.6)
        ax.margins(0.12)
        better = "up and to the right" if metric.mode == "max" else "down and to the left"
        headline(ax, "Mean and worst tenth", f"{better} is better; small dots: seeds")
        _name(ax, places, looks)
    return figure


def _name(ax: Axes, places: Sequence[tuple[float, float, str]], looks: dict[str, Look]) -> None:
    """Write each name beside its dot, with a line to it where names would overlap."""
    low, high = ax.get_ylim()
    left, right = ax.get_xlim()
    for side in (-1, 1):
        here = [place for place in places if (place[0] > (left + right) / 2) == (side < 0)]
        heights = spaced([y for _, y, _ in here], (high - low) * 0.045)
        for (x, y, name), height in zip(here, heights, strict=True):
            ax.annotate(
                name,
                (x, y),
                xytext=(x + side * (right - left) * 0.03, height),
                textcoords="data",
                arrowprops={"arrowstyle": "-", "color": looks[name][0], "linewidth": 0.7},
                ha="right" if side < 0 else "left",
                va="center",
                fontsize=9.5,
                color=MUTED,
            )


def _box(ax: Axes, height: float, values: Numbers, colour: str) -> None:
    if not values.size:
        return
    low, first, median, third, high = np.percentile(values, [10, 25, 50, 75, 90])
    shown = np.sort(values)[:: max(1, math.ceil(values.size / _MOST_DOTS))]
    # dots above one another where accuracies coincide; the same every time
    jitter = ((np.arange(shown.size) * 0.618) % 1 - 0.5) * 0.5
    ax.scatter(shown, height + jitter, s=5, color=colour, alpha=0.35, linewidth=0)
    ax.plot([low, high], [height, height], color=colour, linewidth=1)
    ax.barh(height, third - first, left=first, height=0.56, color=colour, alpha=0.35, linewidth=0)
    ax.plot([median, median], [height - 0.32, height + 0.32], color=INK, linewidth=1.8)


def _pooled(group: Group, name: str, view: str = "") -> Numbers:
    parts = [run.values(name, view) for run in group.runs.values()]
    return group.main_metric.scale * np.concatenate(parts) if parts else np.empty(0)


def _metric(groups: Sequence[Group]) -> MainMetric:
    return groups[0].main_metric if groups else MainMetric()


def _unit(metric: MainMetric) -> str:
    return " (%)" if metric.is_share else ""
