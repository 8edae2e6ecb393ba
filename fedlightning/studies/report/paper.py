"""What ``compare`` and ``report`` write for a paper: tables and figures, and the options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedlightning.core.validation import check_choice, check_number, is_number
from fedlightning.errors import ConfigError, did_you_mean
from fedlightning.storage.files import write_atomically
from fedlightning.studies.plan import slug
from fedlightning.studies.rankings import rank_conditions, rank_seeds
from fedlightning.studies.report.figure_svg import styles_for
from fedlightning.studies.report.paper_figures import (
    COLUMN,
    PAGE,
    FigureFormat,
    clients_paper_figure,
    curves_paper_figure,
    rank_diagram,
    save_paper_figure,
    seeds_paper_figure,
)
from fedlightning.studies.report.paper_tables import (
    PaperTable,
    Spreading,
    conditions_paper_table,
    differences_paper_table,
    results_paper_table,
)
from fedlightning.studies.results import Collection
from fedlightning.studies.seed_tests import SeedTest

__all__ = ["PAPER_OPTIONS", "PaperOptions", "paper_options", "write_paper"]

PAPER_OPTIONS = ("tables", "figures", "width", "spread")
"""Words of the command line."""

_TABLES = {"latex": "tex", "markdown": "md"}
_FIGURES = ("pdf", "svg", "png")
_WIDTHS = {"column": COLUMN, "page": PAGE}


@dataclass(frozen=True)
class PaperOptions:
    """What is written beside the report.

    Args:
        tables: ``latex``, ``markdown``, or both.
        figures: The format of figures, ``None`` for no figures.
        width: Their width, in inches.
        spread: What stands behind the ± in tables: ``sd``, the standard deviation over seeds, or
            ``ci``, half of its 95 % interval.
    """

    tables: tuple[str, ...] = ()
    figures: FigureFormat | None = None
    width: float = COLUMN
    spread: Spreading = "sd"


def paper_options(given: Mapping[str, Any]) -> PaperOptions:
    """Return the options from the words of a command line.

    Raises:
        ConfigError: A value is not one of those that there are.

    Example:
        >>> paper_options({"tables": "latex,markdown", "figures": "pdf", "width": "page"})
        PaperOptions(tables=('latex', 'markdown'), figures='pdf', width=6.9, spread='sd')
    """
    named = given.get("tables", ())
    tables = tuple(named.split(",") if isinstance(named, str) else named or ())
    for name in tables:
        if name not in _TABLES:
            raise ConfigError(
                f"--tables={name}: expected latex, markdown, or latex,markdown."
                f"{did_you_mean(str(name), _TABLES)}"
            )
    figures = given.get("figures")
    if figures is not None:
        check_choice("--figures", figures, _FIGURES)
    width = given.get("width", "column")
    if not is_number(width):
        check_choice("--width", width, [*_WIDTHS, "or inches"])
        width = _WIDTHS.get(str(width), width)
    spread = given.get("spread", "sd")
    check_choice("--spread", spread, ("sd", "ci"))
    return PaperOptions(tables, figures, check_number("--width", width, at_least=1), spread)


def write_paper(
    output: Path,
    collection: Collection,
    tests: Sequence[SeedTest],
    baselines: Mapping[str, str],
    options: PaperOptions,
    metric: str = "acc_after",
) -> list[Path]:
    """Write tables into ``tables`` and figures into ``figures``; return the files.

    Args:
        output: The folder of the report.
        collection: The runs.
        tests: Comparisons over seeds.
        baselines: The baseline of each condition.
        options: What is written.
        metric: ``acc_after`` or ``acc_before``.
    """
    written: list[Path] = []
    for name, table in _tables(collection, tests, baselines, options).items():
        for kind in options.tables:
            path = output / "tables" / f"{name}.{_TABLES[kind]}"
            text = table.latex() if kind == "latex" else table.markdown()
            write_atomically(path, text.encode())
            written.append(path)
    if options.figures is not None:
        for name, figure in _figures(collection, options.width, metric).items():
            path = output / "figures" / f"{name}.{options.figures}"
            save_paper_figure(figure, path, options.figures)
            written.append(path)
    return written


def _tables(
    collection: Collection,
    tests: Sequence[SeedTest],
    baselines: Mapping[str, str],
    options: PaperOptions,
) -> dict[str, PaperTable]:
    found: dict[str, PaperTable] = {}
    if not options.tables:
        return found
    conditions = collection.conditions
    if len(conditions) > 1:
        by_condition = {condition: collection.of(condition) for condition in conditions}
        found["conditions"] = conditions_paper_table(by_condition, "conditions", options.spread)
    for condition in conditions:
        at = _suffix(condition)
        groups = collection.of(condition)
        found[f"results{at}"] = results_paper_table(groups, f"results{at}", options.spread)
        mine = [t for t in tests if t.condition == condition and t.family == "baseline"]
        if mine:
            found[f"differences{at}"] = differences_paper_table(
                mine, baselines[condition], collection.main_metric, f"differences{at}"
            )
    return found


def _figures(collection: Collection, width: float, metric: str) -> dict[str, Any]:
    looks = styles_for(collection.variants)
    found: dict[str, Any] = {}
    for condition in collection.conditions:
        groups, at = collection.of(condition), _suffix(condition)
        found[f"curves{at}"] = curves_paper_figure(groups, looks, width)
        found[f"seeds{at}"] = seeds_paper_figure(groups, looks, width)
        found[f"clients{at}"] = clients_paper_figure(groups, looks, width)
        if (ranking := rank_seeds(groups, metric)) is not None:
            found[f"ranks{at}"] = rank_diagram(ranking, width)
    if (ranking := rank_conditions(collection, metric)) is not None:
        found["ranks"] = rank_diagram(ranking, width)
    return {name: figure for name, figure in found.items() if figure is not None}


def _suffix(condition: str) -> str:
    return f"_{slug(condition)}" if condition else ""
