"""Curves of runs under way, as SVG in the page's colours."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from fedlightning.core.main_metric import MainMetric
from fedlightning.core.metrics import without_view
from fedlightning.reporting.figures.clients import clients_figure
from fedlightning.reporting.figures.style import new_figure, style
from fedlightning.studies.report.figure_svg import Look, styles_for, svg
from fedlightning.studies.run_reader import Numbers, Run
from fedlightning.watching.runs import WatchedRun

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["MOST_CURVES", "clients_drawing", "curve_drawings", "looks_of"]

MOST_CURVES = 16
"""More runs than this are in the table only; the last ones are drawn."""

_MOST_POINTS = 400
_SIZE = (5.2, 3.0)


def looks_of(runs: Sequence[WatchedRun]) -> dict[str, Look]:
    """Return the colour and line style of the runs that are drawn, by name."""
    with_rounds = [run.name for run in runs if run.rounds_done]
    return styles_for(with_rounds[-MOST_CURVES:])


def curve_drawings(runs: Sequence[WatchedRun]) -> list[str]:
    """Draw the metric that counts, and the losses, over rounds.

    A single run has all its values of both; of several runs each has one curve, the global model's.
    """
    looks = looks_of(runs)
    drawn = {run.name: run.run for run in runs if run.name in looks and run.run is not None}
    if len(drawn) == 1:
        ((_, run),) = drawn.items()
        return _of_one_run(run)
    main = next(iter(drawn.values())).main_metric if drawn else MainMetric()
    unit = " (%)" if main.is_share else ""
    panels = [
        (
            f"{main.title}, global model{unit}",
            {n: _global(run) for n, run in drawn.items()},
            main.scale,
        ),
        (
            f"{main.title}, personalized{unit}",
            {n: run.metrics.get(f"personalized/{main.name}") for n, run in drawn.items()},
            main.scale,
        ),
        ("training loss", {n: run.metrics.get("train/loss") for n, run in drawn.items()}, 1.0),
    ]
    return [
        drawing
        for title, series, scale in panels
        if (drawing := _panel(title, drawn, series, looks, scale, legend=False))
    ]


def _global(run: Run) -> Numbers | None:
    return run.metrics.get(run.main_metric.column(run.metrics) or "")


def _of_one_run(run: Run) -> list[str]:
    main = run.main_metric
    counts = main.columns(run.metrics)
    losses = [
        name
        for name in run.metrics
        if name.endswith("/loss") and without_view(name) == name and name not in counts
    ]
    drawings = []
    for title, names, scale in (
        (f"{main.title}{' (%)' if main.is_share else ''}", counts, main.scale),
        ("loss", losses, 1.0),
    ):
        series = {name: run.metrics[name] for name in names}
        looks = styles_for(names)
        drawings.append(_panel(title, dict.fromkeys(names, run), series, looks, scale))
    return [drawing for drawing in drawings if drawing]


def clients_drawing(run: Run) -> str:
    """Draw the clients before and after personalization; empty before there are any values."""
    name = run.main_metric.name
    if not any(record.has(name) for record in run.clients):
        return ""
    with style():
        figure = clients_figure(run.clients, metric=run.main_metric)
    return svg(figure, f"{run.main_metric.title} of each client before and after personalization")


def _panel(
    title: str,
    runs: Mapping[str, Run],
    series: Mapping[str, Numbers | None],
    looks: Mapping[str, Look],
    scale: float,
    legend: bool = True,
) -> str:
    known = {name: values for name, values in series.items() if values is not None}
    if not any(np.isfinite(values).sum() > 1 for values in known.values()):
        return ""  # a table shows a single value better
    with style():
        figure = _drawn(title, runs, known, looks, scale, legend)
    lasts = (f"{name}: {_last(values) * scale:.4g}" for name, values in known.items())
    return svg(figure, f"{title} over rounds. {'; '.join(lasts)}")


def _drawn(
    title: str,
    runs: Mapping[str, Run],
    series: Mapping[str, Numbers],
    looks: Mapping[str, Look],
    scale: float,
    legend: bool,
) -> Figure:
    from matplotlib.ticker import MaxNLocator

    figure = new_figure(*_SIZE)
    ax = figure.subplots()
    for name, values in series.items():
        there = np.isfinite(values)
        xs, ys = runs[name].rounds[there] + 1, values[there] * scale
        few = max(2, min(len(xs), _MOST_POINTS))
        at = np.linspace(0, len(xs) - 1, few).astype(int) if len(xs) else slice(0)
        colour, dashes = looks[name]
        ax.plot(
            xs[at],
            ys[at],
            color=colour,
            linestyle=dashes,
            linewidth=1.7,
            marker="o" if len(xs) <= 30 else None,
            markersize=3,
            label=name,
        )
    ax.set_title(title, loc="left", fontsize=11, fontweight="bold")
    ax.set_xlabel("round")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.grid(axis="y")
    ax.margins(x=0.02)
    if legend:
        ax.legend(loc="best", fontsize=8.5)
    return figure


def _last(values: Numbers) -> float:
    known = values[np.isfinite(values)]
    return float(known[-1]) if known.size else math.nan
