"""Figures for a paper: as wide as a column, 8 points, vectors."""

from __future__ import annotations

import contextlib
import gc
import io
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from fedlightning.core.main_metric import MainMetric
from fedlightning.errors import ConfigError
from fedlightning.reporting.figures.style import GRID, INK, new_figure, style
from fedlightning.storage.files import write_atomically
from fedlightning.studies.rankings import Ranking
from fedlightning.studies.report.figure_svg import Look
from fedlightning.studies.report.learning_points import curve_of
from fedlightning.studies.results import Group
from fedlightning.studies.seed_tests import interval, result_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "COLUMN",
    "PAGE",
    "FigureFormat",
    "clients_paper_figure",
    "curves_paper_figure",
    "paper_style",
    "rank_diagram",
    "save_paper_figure",
    "seeds_paper_figure",
]

COLUMN = 3.3
"""The width of one of two columns, in inches."""

PAGE = 6.9
"""The width of both."""

FigureFormat = Literal["pdf", "svg", "png"]

_POINTS = 8.0
_AXIS = 0.8  # the least width of an axis of ranks, in inches
_GAP = 0.14  # between it and the names
_CUT = "…"
_SETTINGS: Any = {
    "font.size": _POINTS,
    "axes.labelsize": _POINTS,
    "axes.titlesize": _POINTS,
    "xtick.labelsize": _POINTS,
    "ytick.labelsize": _POINTS,
    "legend.fontsize": _POINTS,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.edgecolor": INK,
    "axes.linewidth": 0.6,
    "xtick.major.size": 2.0,
    "ytick.major.size": 2.0,
    "lines.linewidth": 1.1,
    "legend.handlelength": 2.4,
    "pdf.fonttype": 42,  # TrueType, which submission systems ask for
    "svg.fonttype": "path",
    "svg.hashsalt": "fedlightning",
}


@contextlib.contextmanager
def paper_style() -> Iterator[None]:
    """Apply the style of paper figures inside the ``with`` block."""
    import matplotlib

    with style(), matplotlib.rc_context(_SETTINGS):
        yield


def save_paper_figure(figure: Figure, path: Path, kind: FigureFormat) -> None:
    """Write a figure; the same figure gives the same bytes.

    Args:
        figure: The figure.
        path: The file.
        kind: ``pdf``, ``svg`` or ``png`` (300 dots per inch).
    """
    dates = {
        "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
        "svg": {"Date": None, "Creator": None},
        "png": {"Software": None},
    }
    drawn = io.BytesIO()
    with paper_style():
        figure.savefig(drawn, format=kind, dpi=300, metadata=dates[kind])
    write_atomically(path, drawn.getvalue())
    gc.collect()  # figures are full of reference cycles


def curves_paper_figure(
    groups: Sequence[Group], looks: dict[str, Look], width: float = COLUMN
) -> Figure | None:
    """Draw the main metric over rounds: mean over seeds, shaded one standard deviation.

    That of personalized models where it was measured after several rounds, else the global
    model's.

    Args:
        groups: The groups of one condition.
        looks: How each variant is drawn.
        width: In inches.

    Returns:
        The figure, ``None`` without a curve.
    """
    metric = _metric(groups)
    from matplotlib.ticker import MaxNLocator

    names = {run.main_metric.column(run.metrics) for g in groups for run in g.runs.values()}
    titles = {f"personalized/{metric.name}": "personal"}
    titles |= dict.fromkeys(sorted(filter(None, names)), "global")
    drawn = {name: {group.variant: curve_of(group, name) for group in groups} for name in titles}
    known = [name for name in drawn if any(len(c.rounds) > 1 for c in drawn[name].values())]
    if not known:
        return None
    curves, of = drawn[known[0]], titles[known[0]]
    with paper_style():
        figure = _new(width, list(curves))
        ax = figure.subplots()
        for variant, curve in curves.items():
            colour, dashes = looks[variant]
            means, spreads = metric.scale * curve.means, metric.scale * curve.deviations
            mark = "o" if len(curve.rounds) == 1 else ""
            ax.plot(curve.rounds, means, color=colour, linestyle=dashes, marker=mark,
                    markersize=3, label=variant)  # fmt: skip
            if not np.isnan(spreads).any():
                ax.fill_between(curve.rounds, means - spreads, means + spreads, color=colour,
                                alpha=0.15, linewidth=0)  # fmt: skip
        ax.set_xlabel("rounds done")
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        ax.set_ylabel(f"{of} {metric.title}{_unit(metric)}")
        ax.margins(x=0.01)
        ax.grid(linewidth=0.4, color=GRID)
        _legend(figure, ax, width)
    return figure


def seeds_paper_figure(
    groups: Sequence[Group], looks: dict[str, Look], width: float = COLUMN
) -> Figure:
    """Draw each variant's result: the mean with its 95 % interval, below it a dot per seed.

    Args:
        groups: The groups of one condition.
        looks: How each variant is drawn.
        width: In inches.
    """
    metric = _metric(groups)
    with paper_style():
        figure = new_figure(width, 0.2 * len(groups) + 0.55)
        ax = figure.subplots()
        for at, group in enumerate(groups):
            values = [metric.scale * result_of(run) for run in group.runs.values()]
            known = np.array([value for value in values if not math.isnan(value)])
            if not known.size:
                continue
            colour = looks[group.variant][0]
            low, high = interval(known)
            above, below = 0.1 - at, -0.17 - at
            if not math.isnan(low):
                ax.plot([low, high], [above, above], color=colour, linewidth=1.4)
            ax.scatter(known, np.full(known.size, below), s=7, color=colour, alpha=0.7, linewidth=0)
            ax.plot([known.mean()], [above], marker="|", markersize=7, color=INK)
        ax.set_yticks([-at for at in range(len(groups))], [group.variant for group in groups])
        ax.set_ylim(-len(groups) + 0.5, 0.5)
        ax.set_xlabel(f"{metric.title}{_unit(metric)}")
        ax.grid(axis="x", linewidth=0.4, color=GRID)
    return figure


def clients_paper_figure(
    groups: Sequence[Group], looks: dict[str, Look], width: float = COLUMN
) -> Figure | None:
    """Draw, for each value of the main metric, the share of clients with at most that value.

    Args:
        groups: The groups of one condition.
        looks: How each variant is drawn.
        width: In inches.

    Returns:
        The figure, ``None`` where no run has values of clients.
    """
    metric = _metric(groups)
    values = {
        group.variant: np.sort(
            metric.scale * np.concatenate([run.values("acc_after") for run in group.runs.values()])
        )
        for group in groups
    }
    if not any(each.size for each in values.values()):
        return None
    with paper_style():
        figure = _new(width, [variant for variant, each in values.items() if each.size])
        ax = figure.subplots()
        for variant, each in values.items():
            if each.size:
                colour, dashes = looks[variant]
                shares = np.concatenate([[0], 100 * np.arange(1, each.size + 1) / each.size])
                ax.step(np.concatenate([each[:1], each]), shares, where="post", color=colour,
                        linestyle=dashes, label=variant)  # fmt: skip
        ax.set_xlabel(f"{metric.title} of a client{_unit(metric)}")
        ax.set_ylabel("clients up to it (%)")
        ax.set_ylim(0, 101)
        ax.grid(linewidth=0.4, color=GRID)
        _legend(figure, ax, width)
    return figure


def rank_diagram(ranking: Ranking, width: float = COLUMN) -> Figure:
    """Draw a critical-difference diagram: mean ranks, bars over what cannot be told apart.

    Args:
        ranking: The mean ranks.
        width: In inches.

    Raises:
        ConfigError: The width is too small; the message says which is not.

    Source:
        Demšar. Statistical comparisons of classifiers over multiple data sets. JMLR 7, 2006.
    """
    count = len(ranking.variants)
    left = (count + 1) // 2
    step = 0.165  # inches between lines of text
    bars = len(ranking.alike)
    above, below = 0.52, 0.12 + 0.07 * bars + step * (left + 0.4)
    with paper_style():
        figure = new_figure(width, above + below)
        figure.set_layout_engine("none")
        ax = figure.add_axes((0, 0, 1, 1))
        ax.set_xlim(0, width)
        ax.set_ylim(-below, above)
        ax.axis("off")
        sides = ranking.variants[:left], ranking.variants[left:]
        critical = min(ranking.critical_difference, count - 1)
        more = "" if critical == ranking.critical_difference else " (beyond the axis)"
        label = f"CD = {ranking.critical_difference:.2f}{more}, {ranking.blocks} {ranking.unit}"
        widest = _inches(figure, label)
        least = max(widest, _least(figure, sides) + _AXIS + 2 * _GAP)
        if width < least:
            raise ConfigError(
                f"--width={width:g} is too narrow for the diagram of ranks: it takes at least "
                f"{math.ceil(100 * least) / 100:g} inches."
            )
        shown, (start, margin) = _fitted(figure, sides, width - _AXIS - 2 * _GAP)
        start, end = start + _GAP, width - margin - _GAP

        def x(rank: float) -> float:
            return start + (end - start) * (rank - 1) / (count - 1)

        ax.plot([start, end], [0, 0], color=INK, linewidth=0.8, solid_capstyle="butt")
        for rank in range(1, count + 1):
            ax.plot([x(rank)] * 2, [0, 0.05], color=INK, linewidth=0.8)
            ax.text(x(rank), 0.08, str(rank), ha="center", va="bottom")
        ax.plot([x(1), x(1 + critical)], [0.27] * 2, color=INK, linewidth=0.8)
        for end_of in (1.0, 1 + critical):
            ax.plot([x(end_of)] * 2, [0.24, 0.30], color=INK, linewidth=0.8)
        ax.text(min(x(1), width - widest), 0.33, label, va="bottom")
        for bar, (first, last) in enumerate(ranking.alike):
            height = -0.08 - 0.07 * bar
            ends = [x(ranking.mean_ranks[first]) - 0.03, x(ranking.mean_ranks[last]) + 0.03]
            ax.plot(ends, [height] * 2, color=INK, linewidth=2.2, solid_capstyle="butt")
        for at, (name, mean) in enumerate(zip(shown, ranking.mean_ranks, strict=True)):
            on_left = at < left
            row = at if on_left else count - 1 - at
            height = -(0.12 + 0.07 * bars + step * (row + 0.7))
            edge = start - 0.06 if on_left else end + 0.06
            ax.plot([x(mean), x(mean), edge], [0, height, height], color=INK, linewidth=0.6)
            ax.text(edge + (-0.04 if on_left else 0.04), height, name,
                    ha="right" if on_left else "left", va="center")  # fmt: skip
    return figure


def _fitted(
    figure: Figure, sides: tuple[Sequence[str], Sequence[str]], room: float
) -> tuple[list[str], tuple[float, float]]:
    """Return the names on both sides, cut to the room that there is, and each side's width.

    The room must be that of :func:`_least` or more: then there is a name to cut.
    """
    shown = [list(names) for names in sides]
    while True:
        widths = [[_inches(figure, name) for name in names] for names in shown]
        widest = [max(each, default=0.0) for each in widths]
        if sum(widest) <= room:
            return [*shown[0], *shown[1]], (widest[0], widest[1])
        side = int(widest[1] > widest[0])
        at = widths[side].index(widest[side])
        shown[side][at] = shown[side][at].removesuffix(_CUT)[:-1] + _CUT


def _least(figure: Figure, sides: tuple[Sequence[str], Sequence[str]]) -> float:
    """Return the width of both sides when all names are cut that can be."""
    cut = _inches(figure, _CUT)
    return sum(
        max((min(_inches(figure, name), cut) for name in names), default=0.0) for names in sides
    )


def _inches(figure: Figure, text: str) -> float:
    from matplotlib.text import Text

    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    drawn = Text(0, 0, text, figure=figure)
    return float(drawn.get_window_extent(renderer).width / figure.dpi)


def _new(width: float, names: Sequence[str]) -> Figure:
    """Return a figure with room for a legend of some names above its axes."""
    return new_figure(width, 0.62 * width + 0.16 * math.ceil(len(names) / _columns(names, width)))


def _columns(names: Sequence[str], width: float) -> int:
    wide = max(map(len, names), default=1) * 0.062 + 0.5  # inches of an entry
    return max(1, min(len(names), int(width / wide)))


def _legend(figure: Figure, ax: Axes, width: float) -> None:
    handles, names = ax.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper left", ncols=_columns(names, width))


def _metric(groups: Sequence[Group]) -> MainMetric:
    return groups[0].main_metric if groups else MainMetric()


def _unit(metric: MainMetric) -> str:
    return " (%)" if metric.is_share else ""
