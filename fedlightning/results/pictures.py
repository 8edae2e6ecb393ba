"""The figures of a run folder, drawn again from its tables."""

from __future__ import annotations

import io
import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedlightning.core.client_names import NAME_COLUMN
from fedlightning.reporting import clients_figure, curves_figure, partition_figure
from fedlightning.reporting.figures.style import style
from fedlightning.results.frames import read_columns
from fedlightning.storage.run_layout import PARTITION_TABLE
from fedlightning.studies.run_reader import Run as RunRecord

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["clients_of", "curves_of", "partition_of", "shown"]

_LOSSES = ("train/loss", "val/loss", "global/loss")


def curves_of(record: RunRecord) -> Figure:
    """Return the learning curves of a run: the main metric and the losses."""
    columns = record.metrics
    names = [*(name for name in _LOSSES if name in columns), *record.main_metric.columns(columns)]
    series = {
        name: [float(value) for value in columns[name]]
        for name in dict.fromkeys(names)
        if not np.isnan(columns[name]).all()
    }
    clock = [float(value) for value in columns.get("time/simulated", [])]
    timed = bool(clock) and not any(map(math.isnan, clock))
    rounds = [int(number) for number in record.rounds]
    figure = curves_figure(rounds, series, clock=clock if timed else None, main=record.main_metric)
    return shown(figure)


def clients_of(record: RunRecord, view: str = "") -> Figure:
    """Return each client before and after personalization."""
    return shown(clients_figure(record.views.get(view, ()), metric=record.main_metric))


def partition_of(folder: Path) -> Figure:
    """Return the examples per client and class."""
    columns = read_columns(folder / PARTITION_TABLE)
    classes = [values for name, values in columns.items() if name.startswith("class_")]
    names = columns.get(NAME_COLUMN)
    return shown(partition_figure(np.array(classes).T, names=names))


def shown(figure: Any) -> Figure:
    """Return a figure that notebooks show, without pyplot and its settings for inline figures."""
    figure._repr_png_ = partial(_png, figure)
    drawn: Figure = figure
    return drawn


def _png(figure: Figure) -> bytes:
    image = io.BytesIO()
    with style():
        figure.savefig(image, format="png", dpi=100)
    return image.getvalue()
