"""Tables, figures and the closing summary of one run.

``fedlightning.reporting.client_logging`` and ``fedlightning.reporting.csv_logger`` need Lightning
and are imported by their full names; the rest does not. Matplotlib is imported when a figure is
drawn.
"""

from typing import TYPE_CHECKING

from fedlightning.core.near_names import suggesting
from fedlightning.core.statistics import Spread
from fedlightning.reporting.client_records import ClientRecord, read_clients_csv, write_clients_csv
from fedlightning.reporting.figures.save import (
    clients_figure,
    curves_figure,
    finetuning_figure,
    partition_figure,
    save_figure,
    timeline_figure,
)
from fedlightning.reporting.figures.timeline import TimelineEntry
from fedlightning.reporting.finetuning_curve import EpochRecord, write_finetuning_csv
from fedlightning.reporting.summary import RunSummary, ViewSummary, render

__all__ = [
    "ClientRecord",
    "EpochRecord",
    "RunSummary",
    "Spread",
    "TimelineEntry",
    "ViewSummary",
    "clients_figure",
    "curves_figure",
    "finetuning_figure",
    "partition_figure",
    "read_clients_csv",
    "render",
    "save_figure",
    "timeline_figure",
    "write_clients_csv",
    "write_finetuning_csv",
]

if not TYPE_CHECKING:  # to type checkers a module with __getattr__ has every name
    __getattr__ = suggesting(__name__, __all__)
