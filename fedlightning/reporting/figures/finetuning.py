"""The main metric over the epochs of fine-tuning."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from fedlightning.core.main_metric import MainMetric
from fedlightning.core.views import view_label
from fedlightning.reporting.figures.style import (
    BLUE,
    CYCLE,
    RED,
    counted,
    headline,
    label_at_right,
    new_figure,
    style,
)
from fedlightning.reporting.finetuning_curve import EpochRecord

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["finetuning_figure"]

_GREEN, *_OTHERS = CYCLE[2:]


def finetuning_figure(
    records: Sequence[EpochRecord],
    others: Mapping[str, Sequence[EpochRecord]] | None = None,
    title: str | None = None,
    metric: MainMetric | None = None,
) -> Figure:
    """Draw the mean over clients, a band of one standard deviation, and the worse tail.

    That is the tenth percentile, or the ninetieth of a metric of which less is better.

    Args:
        records: The clients that train, epoch by epoch.
        others: The other views by name, of which the mean alone is drawn.
        title: The headline; ``None`` names the metric.
        metric: What is drawn; ``None`` means accuracy.

    Returns:
        A figure that is not registered with pyplot; see
        :func:`~fedlightning.reporting.figures.save.save_figure`.

    Example:
        >>> records = [EpochRecord.of(e, [(0.5 + e / 10, 0.5), (0.6, 0.6)]) for e in range(3)]
        >>> finetuning_figure(records).axes[0].get_xlabel()
        'epochs of fine-tuning'
    """
    others, metric = others or {}, metric or MainMetric()
    if title is None:
        title = f"{metric.title[0].upper()}{metric.title[1:]} over epochs of fine-tuning"
    tail = "tenth percentile" if metric.mode == "max" else "ninetieth percentile"
    with style():
        figure = new_figure(9, 4.6)
        ax = figure.subplots()
        headline(ax, title, _subtitle(records, metric))
        lines = [
            ("mean", RED, "-", records, "acc_mean"),
            (tail, BLUE, "-", records, "acc_p10"),
            ("mean, validation data", _GREEN, "--", records, "val_acc_mean"),
            *(
                (f"mean, {view_label(name)}", _OTHERS[at % len(_OTHERS)], "-.", group, "acc_mean")
                for at, (name, group) in enumerate(others.items())
            ),
        ]
        ends, texts, colors = [], [], []
        for name, color, dash, group, column in lines:
            epochs = np.array([record.epoch for record in group])
            values = metric.scale * np.array([getattr(record, column) for record in group])
            if not np.isfinite(values).any():
                continue
            ax.plot(epochs, values, dash, color=color, linewidth=1.8, marker="o", markersize=3.5)
            ends.append(float(values[-1]))
            texts.append(f"{name}  {metric.text(values[-1] / metric.scale)}")
            colors.append(color)
        if ends and any(record.num_clients for record in records):
            epochs, mean, std = (
                np.array([getattr(record, column) for record in records])
                for column in ("epoch", "acc_mean", "acc_std")
            )
            low, high = mean - std, mean + std
            if metric.is_share:
                low, high = np.clip(low, 0, 1), np.clip(high, 0, 1)
            scale = metric.scale
            ax.fill_between(epochs, scale * low, scale * high, color=RED, alpha=0.12, linewidth=0)
        if metric.is_share:
            ax.yaxis.set_major_formatter(lambda value, _: f"{value:.0f} %")
        ax.locator_params(axis="x", integer=True)
        ax.set_xlabel("epochs of fine-tuning")
        ax.set_ylabel(metric.title)
        ax.grid(axis="y")
        ax.spines["left"].set_visible(False)
        ax.margins(x=0.01)
        label_at_right(ax, ends, texts, colors)
    return figure


def _subtitle(records: Sequence[EpochRecord], metric: MainMetric) -> str:
    clients = records[0].num_clients if records else 0
    words = f"{counted(clients, 'client')}; the band is one standard deviation over clients"
    known = [record for record in records if not math.isnan(record.acc_mean)]
    if not known:
        return counted(clients, "client")
    return f"{words}; {metric.text(known[0].acc_mean)} before fine-tuning"
