"""Learning curves over rounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

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
) -> Figure:
    """Draw metrics over rounds, each with its name and last value at its right end.

    Accuracies (metrics whose last part begins with ``acc``) share a panel in percent; all others
    share one below. A nan, where a metric was not logged, is skipped and the line continues.

    Args:
        rounds: Round indices, R of them.
        series: R values by metric name.
        title: The headline.

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
    others = {name: values for name, values in series.items() if not _is_accuracy(name)}
    panels = [panel for panel in (accuracies, others) if panel] or [{}]
    colors = {name: CYCLE[index % len(CYCLE)] for index, name in enumerate(series)}
    with style():
        figure = new_figure(9, 1.4 + 2.8 * len(panels))
        axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
        headline(axes[0], title, counted(len(rounds), "round"))
        for ax, panel in zip(axes, panels, strict=True):
            _draw(ax, rounds, panel, colors)
        figure.align_ylabels()
        axes[-1].set_xlabel("round")
        axes[-1].xaxis.get_major_locator().set_params(integer=True)
    return figure


def _is_accuracy(name: str) -> bool:
    return name.rsplit("/", 1)[-1].startswith("acc")


def _draw(
    ax: Axes,
    rounds: Sequence[int],
    panel: Mapping[str, Sequence[float]],
    colors: Mapping[str, str],
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
            np.asarray(rounds)[known],
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
    ax.set_ylabel("accuracy" if percent else "loss" if _all_losses(panel) else "value")
    ax.grid(axis="y")
    ax.spines["left"].set_visible(False)
    ax.margins(x=0.01)
    label_at_right(ax, ends, texts, shown)


def _all_losses(panel: Mapping[str, Sequence[float]]) -> bool:
    return all(name.rsplit("/", 1)[-1].startswith("loss") for name in panel)
