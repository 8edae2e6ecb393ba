"""Learning curves over rounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from fedlightning.core.main_metric import MainMetric
from fedlightning.core.metrics import canonical_name
from fedlightning.errors import ConfigError
from fedlightning.reporting.figures.style import (
    CYCLE,
    counted,
    headline,
    label_at_right,
    new_figure,
    style,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["curves_figure"]


def curves_figure(
    rounds: Sequence[int],
    series: Mapping[str, Sequence[float]],
    title: str = "Learning curves",
    clock: Sequence[float] | None = None,
    main: MainMetric | None = None,
) -> Figure:
    """Draw metrics over rounds, each with its name and last value at its right end.

    Accuracies (metrics whose last part begins with ``acc``) share a panel in percent, another main
    metric has one of its own; all others share one below. A nan, where a metric was not logged, is
    skipped and the line continues.

    Args:
        rounds: Round indices, R of them.
        series: R values by metric name.
        title: The headline.
        clock: Simulated seconds at the end of each round: the metrics are drawn over them, too.
        main: The metric that counts; ``None`` means accuracy.

    Returns:
        A figure that is not registered with pyplot; see
        :func:`~fedlightning.reporting.figures.save.save_figure`.

    Raises:
        ConfigError: A metric does not have one value per round.

    Example:
        >>> figure = curves_figure([0, 1], {"global/acc": [0.1, 0.4], "train/loss": [2.3, 1.1]})
        >>> [ax.get_ylabel() for ax in figure.axes]
        ['accuracy', 'loss']
    """
    for name, values in series.items():
        if len(values) != len(rounds):
            raise ConfigError(f"'{name}' has {len(values)} values for {len(rounds)} rounds")
    accuracies = {name: values for name, values in series.items() if _is_accuracy(name)}
    own = {
        name: values
        for name, values in series.items()
        if main is not None and main.name not in ("acc", "loss") and _is_of(name, main)
    }
    apart = accuracies.keys() | own.keys()
    others = {name: values for name, values in series.items() if name not in apart}
    panels = [panel for panel in (own, accuracies, others) if panel] or [{}]
    colors = {name: CYCLE[index % len(CYCLE)] for index, name in enumerate(series)}
    scales: list[tuple[str, Sequence[float]]] = [("rounds done", [index + 1 for index in rounds])]
    if clock is not None:
        scales.append(("simulated seconds", clock))
    with style():
        figure = new_figure(9 if clock is None else 14, 1.4 + 2.8 * len(panels))
        grid = figure.subplots(len(panels), len(scales), sharex="col", sharey="row", squeeze=False)
        headline(grid[0][0], title, counted(len(rounds), "round"))
        for axes, panel in zip(grid, panels, strict=True):
            for ax, (_, xs) in zip(axes, scales, strict=True):
                _draw(ax, xs, panel, colors, named=ax is axes[-1])
            axes[0].set_ylabel(main.title if main and panel is own else _quantity(panel))
        figure.align_ylabels()
        for ax, (name, _) in zip(grid[-1], scales, strict=True):
            ax.set_xlabel(name)
        grid[-1][0].xaxis.get_major_locator().set_params(integer=True)
    return figure


def _is_accuracy(name: str) -> bool:
    return name.rsplit("/", 1)[-1].startswith("acc")


def _is_of(name: str, main: MainMetric) -> bool:
    return canonical_name(name.rsplit("/", 1)[-1]) == main.name


def _draw(
    ax: Axes,
    xs: Sequence[float],
    panel: Mapping[str, Sequence[float]],
    colors: Mapping[str, str],
    named: bool,
) -> None:
    percent = all(_is_accuracy(name) for name in panel) and bool(panel)
    ends, texts, shown = [], [], []
    for name, values in panel.items():
        numbers = np.asarray(values, dtype=np.float64) * (100 if percent else 1)
        known = np.isfinite(numbers)
        if not known.any():
            continue
        few = int(known.sum()) <= 30
        ax.plot(
            np.asarray(xs)[known],
            numbers[known],
            color=colors[name],
            linewidth=1.8,
            marker="o" if few else None,
            markersize=3.5,
        )
        last = float(numbers[known][-1])
        ends.append(last)
        texts.append(f"{name}  {last:.1f} %" if percent else f"{name}  {last:.3g}")
        shown.append(colors[name])
    if percent:
        ax.yaxis.set_major_formatter(lambda value, _: f"{value:.0f} %")
    ax.grid(axis="y")
    ax.spines["left"].set_visible(False)
    ax.margins(x=0.01)
    if named:
        label_at_right(ax, ends, texts, shown)


def _quantity(panel: Mapping[str, Sequence[float]]) -> str:
    """Return what a panel shows."""
    if panel and all(_is_accuracy(name) for name in panel):
        return "accuracy"
    losses = all(name.rsplit("/", 1)[-1].startswith("loss") for name in panel)
    return "loss" if losses else "value"
