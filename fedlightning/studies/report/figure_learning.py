"""Learning curves of several variants, against rounds, bytes, seconds and simulated time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from fedlightning.core.main_metric import MainMetric
from fedlightning.core.views import metric_in_view
from fedlightning.reporting.figures.style import new_figure, style
from fedlightning.studies.report.csv_tables import cumulative_bytes
from fedlightning.studies.report.figure_svg import Look
from fedlightning.studies.results import Group
from fedlightning.studies.run_reader import Numbers, Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["learning_figure"]

_MOST_BANDS = 8
_DWARFS = 30.0
_BYTES = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "bytes"))
_SECONDS = ((7200.0, 3600.0, "hours"), (300.0, 60.0, "minutes"), (0.0, 1.0, "seconds"))


def learning_figure(
    groups: Sequence[Group], looks: dict[str, Look], view: str = ""
) -> Figure | None:
    """Draw mean and standard deviation over seeds, for each metric that has a curve.

    More than eight variants are drawn without the latter, which would hide the curves. Bytes are
    those of both directions, seconds those of training; a column, such as that of simulated time,
    is left out where it is not known for any run.

    Args:
        groups: The groups of one condition.
        looks: How each variant is drawn.
        view: The evaluation view; by default the main one.

    Returns:
        The figure, ``None`` without a curve.
    """
    main = groups[0].main_metric if groups else MainMetric()
    labels = _labels(groups, main, view)
    metrics = [name for name in labels if any(_points(group, name) > 1 for group in groups)]
    axes = _x_axes(groups)
    if not metrics:
        return None
    bands = len(groups) <= _MOST_BANDS
    with style():
        figure = new_figure(3.9 * len(axes) + 0.4, 2.9 * len(metrics) + 0.5)
        grid = figure.subplots(len(metrics), len(axes), squeeze=False, sharex="col", sharey="row")
        for row, metric in enumerate(metrics):
            for column, x_axis in enumerate(axes):
                ax = grid[row][column]
                for group in groups:
                    scale = main.scale if metric in labels and "loss" not in metric else 1.0
                    _draw(ax, group, metric, x_axis, looks[group.variant], bands, scale)
                ax.grid(linewidth=0.6)
                ax.margins(x=0.01)
                if column == 0 and _dwarfed(ax):
                    ax.set_yscale("log")
                if column == 0:
                    ax.set_ylabel(labels[metric])
                if row == len(metrics) - 1:
                    ax.set_xlabel(x_axis[0])
        handles, names = grid[0][0].get_legend_handles_labels()
        figure.legend(
            handles, names, loc="outside upper left", ncols=min(len(names), 2 * len(axes))
        )
    return figure


def _dwarfed(ax: Axes) -> bool:
    """Whether one curve is so high that the others would lie on the axis."""
    drawn = [ys for line in ax.lines if (ys := np.asarray(line.get_ydata(), float)).size]
    if not drawn:
        return False
    tops, lowest = [float(ys.max()) for ys in drawn], min(float(ys.min()) for ys in drawn)
    return lowest > 0 and max(tops) > _DWARFS * float(np.median(tops))


def _labels(groups: Sequence[Group], main: MainMetric, view: str) -> dict[str, str]:
    """Return the metrics that are drawn, and what they are called."""
    runs = [run for group in groups for run in group.runs.values()]
    unit = " (%)" if main.is_share else ""
    found = next((name for run in runs if (name := main.column(run.metrics, view))), None)
    labels = {} if found is None else {found: f"{main.title}, global model{unit}"}
    personal = metric_in_view(view, f"personalized/{main.name}")
    labels[personal] = f"{main.title}, personalized{unit}"
    return labels | {metric_in_view(view, "train/loss"): "training loss"}


def _x_axes(groups: Sequence[Group]) -> list[tuple[str, float, str]]:
    runs = [run for group in groups for run in group.runs.values()]
    axes = [("rounds done", 1.0, "rounds")]
    most = max((_largest(_xs(run, "bytes")) for run in runs), default=0.0)
    if most > 0:
        size, unit = next((size, unit) for size, unit in _BYTES if most >= size or size == 1)
        axes.append((f"{unit} up and down, all clients", size, "bytes"))
    longest = max((_largest(_xs(run, "seconds")) for run in runs), default=0.0)
    if longest > 0:
        _, size, unit = next(entry for entry in _SECONDS if longest >= entry[0])
        axes.append((f"{unit} of training", size, "seconds"))
    simulated = max((_largest(_xs(run, "simulated")) for run in runs), default=0.0)
    if simulated > 0:
        _, size, unit = next(entry for entry in _SECONDS if simulated >= entry[0])
        axes.append((f"simulated {unit}", size, "simulated"))
    return axes


def _xs(run: Run, kind: str) -> Numbers:
    if kind == "rounds":
        return run.rounds + 1
    if kind == "seconds":
        return np.asarray(np.cumsum(run.seconds), float)
    if kind == "simulated":
        return np.asarray(run.metrics.get("time/simulated", np.full(len(run.rounds), math.nan)))
    return np.asarray(cumulative_bytes(run.metrics, len(run.rounds)), float)


def _largest(xs: Numbers) -> float:
    known = xs[~np.isnan(xs)]
    return float(known[-1]) if known.size else 0.0


def _points(group: Group, metric: str) -> int:
    return max(
        int((~np.isnan(run.metrics.get(metric, np.empty(0)))).sum()) for run in group.runs.values()
    )


def _draw(
    ax: Axes,
    group: Group,
    metric: str,
    x_axis: tuple[str, float, str],
    look: Look,
    bands: bool,
    factor: float,
) -> None:
    _, scale, kind = x_axis
    by_round: dict[int, list[tuple[float, float]]] = {}
    for run in group.runs.values():
        if metric in run.metrics:
            for number, x, y in zip(
                run.rounds, _xs(run, kind) / scale, run.metrics[metric] * factor, strict=True
            ):
                if not (math.isnan(x) or math.isnan(y)):
                    by_round.setdefault(int(number), []).append((x, y))
    # a round that only some seeds came to would make the mean jump
    full = max((len(points) for points in by_round.values()), default=0)
    points = [np.array(by_round[number]) for number in sorted(by_round) if
              len(by_round[number]) == full]  # fmt: skip
    xs = np.array([each[:, 0].mean() for each in points])
    ys = np.array([each[:, 1].mean() for each in points])
    colour, dashes = look
    mark = "o" if len(xs) == 1 else ""  # a line of one point would not be seen
    ax.plot(xs, ys, color=colour, linestyle=dashes, linewidth=1.6, marker=mark, markersize=4,
            label=group.variant)  # fmt: skip
    if full > 1 and bands:
        spread = np.array([each[:, 1].std(ddof=1) for each in points])
        ax.fill_between(xs, ys - spread, ys + spread, color=colour, alpha=0.15, linewidth=0)
