"""The figures of a run, and writing them to files."""

from __future__ import annotations

import gc
import io
import os
from typing import TYPE_CHECKING

from fedlightning.reporting.figures.clients import clients_figure
from fedlightning.reporting.figures.curves import curves_figure
from fedlightning.reporting.figures.finetuning import finetuning_figure
from fedlightning.reporting.figures.influence import influence_figure, leave_one_out_figure
from fedlightning.reporting.figures.partition import partition_figure
from fedlightning.reporting.figures.style import style
from fedlightning.reporting.figures.timeline import timeline_figure
from fedlightning.storage.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "clients_figure",
    "curves_figure",
    "finetuning_figure",
    "influence_figure",
    "leave_one_out_figure",
    "partition_figure",
    "save_figure",
    "timeline_figure",
]


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> None:
    r"""Write a figure as PNG, 150 dots per inch; the same figure gives the same bytes.

    A reader finds the old picture or the new one, never half of either.

    Args:
        figure: What a function of this module returned.
        path: The file, by convention with the suffix ``.png``; folders are created.

    Raises:
        EnvironmentFailure: The file cannot be written.

    Example:
        >>> path = getfixture("tmp_path") / "partition.png"
        >>> save_figure(partition_figure([[5, 0], [0, 7]]), path)
        >>> path.read_bytes()[:4]
        b'\x89PNG'
    """
    image = io.BytesIO()
    with style():
        # matplotlib signs the file with its version, unless told not to.
        figure.savefig(image, format="png", dpi=150, metadata={"Software": None})
    write_atomically(path, image.getvalue())
    # Figures are full of reference cycles. Left to itself the collector lets dozens of them pile
    # up, which looks like a leak in a long run: 50 MB after 60 figures.
    gc.collect()
