"""Tables for a paper: LaTeX for booktabs, and Markdown."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from fedlightning.core.main_metric import MainMetric
from fedlightning.studies.results import Group
from fedlightning.studies.run_reader import Run
from fedlightning.studies.seed_tests import SeedTest, interval, result_of

__all__ = [
    "PaperTable",
    "Spreading",
    "conditions_paper_table",
    "differences_paper_table",
    "results_paper_table",
]

Spreading = Literal["sd", "ci"]
"""What stands behind the ±: the standard deviation over seeds, or half the 95 % interval."""

_SPECIAL = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
}  # fmt: skip


@dataclass(frozen=True)
class Number:
    """A number in a cell.

    Args:
        text: The number.
        spread: What stands behind the ±, empty for nothing.
        best: Whether it is the best of its column.
    """

    text: str
    spread: str = ""
    best: bool = False


@dataclass(frozen=True)
class PaperTable:
    r"""A table that is written as LaTeX or as Markdown.

    Args:
        label: Its name in ``\ref``, after ``tab:``.
        caption: What it shows.
        header: The columns' names.
        rows: The cells; text, which is aligned left, or numbers.
    """

    label: str
    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str | Number]]

    def latex(self) -> str:
        r"""Return a ``table`` environment; it needs the package booktabs.

        Example:
            >>> rows = [["A_1", Number("9.0", "1", best=True)]]
            >>> print(PaperTable("a", "50 %", ["name", "acc"], rows).latex())
            % \usepackage{booktabs}
            \begin{table}[t]
              \centering
              \caption{50 \%}
              \label{tab:a}
              \begin{tabular}{lr}
                \toprule
                name &                  acc \\
                \midrule
                A\_1 & \textbf{9.0} $\pm$ 1 \\
                \bottomrule
              \end{tabular}
            \end{table}
            <BLANKLINE>
        """
        columns = "".join("l" if self._is_text(at) else "r" for at in range(len(self.header)))
        grid = [list(map(_escaped, self.header)), *([*map(_latex, row)] for row in self.rows)]
        grid = [[_protected(first), *others] for first, *others in grid]
        lines = [" & ".join(row).rstrip() + r" \\" for row in self._padded(grid)]
        return "\n".join(
            [
                r"% \usepackage{booktabs}",
                r"\begin{table}[t]",
                r"  \centering",
                rf"  \caption{{{_escaped(self.caption)}}}",
                rf"  \label{{tab:{re.sub('[^A-Za-z0-9-]+', '-', self.label).strip('-')}}}",
                rf"  \begin{{tabular}}{{{columns}}}",
                r"    \toprule",
                f"    {lines[0]}",
                r"    \midrule",
                *(f"    {line}" for line in lines[1:]),
                r"    \bottomrule",
                r"  \end{tabular}",
                r"\end{table}",
                "",
            ]
        )

    def markdown(self) -> str:
        """Return a table of GitHub's Markdown, with its caption above.

        Example:
            >>> print(PaperTable("a", "c", ["name", "acc"], [["A", Number("9.0")]]).markdown())
            c
            <BLANKLINE>
            | name | acc |
            |------|----:|
            | A    | 9.0 |
            <BLANKLINE>
        """
        grid = [list(map(_plain, self.header)), *([*map(_marked, row)] for row in self.rows)]
        padded = self._padded(grid)
        rule = [
            "-" * (len(cell) + 2) if self._is_text(at) else "-" * (len(cell) + 1) + ":"
            for at, cell in enumerate(padded[0])
        ]
        lines = [f"| {' | '.join(row)} |" for row in padded]
        return "\n".join([self.caption, "", lines[0], f"|{'|'.join(rule)}|", *lines[1:], ""])

    def _is_text(self, column: int) -> bool:
        return all(isinstance(row[column], str) for row in self.rows)

    def _padded(self, grid: Sequence[Sequence[str]]) -> list[list[str]]:
        widths = [max(map(len, column)) for column in zip(*grid, strict=True)]
        return [
            [
                cell.ljust(width) if self._is_text(at) else cell.rjust(width)
                for at, (cell, width) in enumerate(zip(row, widths, strict=True))
            ]
            for row in grid
        ]


def results_paper_table(
    groups: Sequence[Group], label: str, spreading: Spreading = "sd"
) -> PaperTable:
    """Return the variants of one condition by what was measured of them; the best is bold.

    Args:
        groups: The groups.
        label: The table's name.
        spreading: What stands behind the ±.
    """
    metric = groups[0].main_metric
    measures: dict[str, Callable[[Run], float]] = {
        "before": lambda run: metric.spread(run.values("acc_before")).mean,
        "after": lambda run: metric.spread(run.values("acc_after")).mean,
        "worst tenth": lambda run: metric.spread(run.values("acc_after")).worst_decile,
        "global": lambda run: run.last_global(),
    }
    columns = {}
    for name, measure in measures.items():
        values = [[measure(run) for run in group.runs.values()] for group in groups]
        if any(not math.isnan(value) for of_group in values for value in of_group):
            columns[name] = _numbers(values, metric, spreading)
    if columns.get("global") == columns.get("before"):
        columns.pop("global", None)  # what a client starts from is the global model
    rows: list[list[str | Number]] = [
        [group.variant, *(column[at] for column in columns.values())]
        for at, group in enumerate(groups)
    ]
    where = f", {groups[0].condition}" if groups[0].condition else ""
    if {"before", "after"} <= set(columns):
        where += " before and after personalization"
    return PaperTable(label, _caption(groups, metric, spreading, where), ["", *columns], rows)


def conditions_paper_table(
    by_condition: Mapping[str, Sequence[Group]], label: str, spreading: Spreading = "sd"
) -> PaperTable:
    """Return variants by conditions: the result of each; the best of a condition is bold.

    Args:
        by_condition: The groups of each condition.
        label: The table's name.
        spreading: What stands behind the ±.
    """
    every = [group for groups in by_condition.values() for group in groups]
    variants = list(dict.fromkeys(group.variant for group in every))
    metric, columns = every[0].main_metric, []
    for groups in by_condition.values():
        of = {group.variant: group for group in groups}
        values = [
            [result_of(run) for run in of[name].runs.values()] if name in of else []
            for name in variants
        ]
        columns.append(_numbers(values, metric, spreading))
    rows: list[list[str | Number]] = [
        [name, *(column[at] for column in columns)] for at, name in enumerate(variants)
    ]
    caption = _caption(every, metric, spreading, " after personalization")
    return PaperTable(label, caption, ["", *by_condition], rows)


def differences_paper_table(
    tests: Sequence[SeedTest], baseline: str, metric: MainMetric, label: str
) -> PaperTable:
    """Return the comparisons with one variant, over seeds.

    Args:
        tests: The comparisons.
        baseline: The variant.
        metric: What was compared.
        label: The table's name.
    """
    scale = metric.scale
    ends = [v for test in tests for v in (test.mean_difference, test.low, test.high)]
    digits = _digits([scale * value for value in ends], metric)
    rows: list[list[str | Number]] = []
    for test in tests:
        low, high = (_fixed(scale * end, digits, signed=True) for end in (test.low, test.high))
        rows.append(
            [
                test.variant,
                Number(_fixed(scale * test.mean_difference, digits, signed=True)),
                Number("--" if math.isnan(test.low) else f"[{low}, {high}]"),
                Number(f"{test.better} of {test.seeds}"),
                Number(_fixed(test.cohens_d, 2, signed=True)),
                Number(_p(test.p_value)),
                Number(_p(test.p_holm)),
            ]
        )
    unit = "points of accuracy" if metric.is_share else metric.title
    caption = (
        f"Difference to {baseline} in {unit}: mean over seeds, 95 % interval of Student's t, seeds "
        "in which the variant is better, Cohen's d of paired values, p of the paired t test over "
        "seeds, and p corrected by Holm's method."
    )
    header = ["", "difference", "95 % interval", "better", "d", "p", "p (Holm)"]
    return PaperTable(label, caption, header, rows)


def _caption(groups: Sequence[Group], metric: MainMetric, spreading: Spreading, where: str) -> str:
    counts = sorted({len(group.runs) for group in groups})
    seeds = " to ".join(map(str, dict.fromkeys((counts[0], counts[-1]))))
    what = "Accuracy in %" if metric.is_share else metric.title
    text = f"{what}{where}: mean over clients and {seeds} seed{'s' if counts[-1] > 1 else ''}"
    if counts[-1] > 1:
        about = "standard deviation" if spreading == "sd" else "half of the 95 % interval"
        text += f" ± {about} over seeds"
    return f"{text}. Bold: the best."


def _numbers(
    values: Sequence[Sequence[float]], metric: MainMetric, spreading: Spreading
) -> list[Number]:
    """Return a column's cells, from the values of the seeds of each row."""
    known = [[metric.scale * v for v in row if not math.isnan(v)] for row in values]
    means = [sum(row) / len(row) if row else math.nan for row in known]
    digits = _digits(means, metric)
    texts = [_fixed(mean, digits) for mean in means]
    target = _fixed(metric.best(means), digits)
    several = sum(bool(row) for row in known) > 1
    return [
        Number(text, _spread(row, digits, spreading), several and bool(row) and text == target)
        for row, text in zip(known, texts, strict=True)
    ]


def _spread(values: Sequence[float], digits: int, spreading: Spreading) -> str:
    if len(values) < 2:
        return ""
    low, high = interval(values)
    mean = sum(values) / len(values)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
    return _fixed((high - low) / 2 if spreading == "ci" else deviation, digits)


def _digits(values: Sequence[float], metric: MainMetric) -> int:
    """Return the decimals of a column: one for percent, else four digits of the largest."""
    largest = max((abs(value) for value in values if math.isfinite(value)), default=0.0)
    if metric.is_share or not largest:
        return 1
    return max(0, 3 - math.floor(math.log10(largest)))


def _fixed(value: float, digits: int, signed: bool = False) -> str:
    if math.isnan(value):
        return "--"
    rounded = round(value, digits) + 0.0  # no minus before a zero
    return f"{rounded:{'+' if signed else ''}.{digits}f}"


def _p(value: float) -> str:
    if math.isnan(value):
        return "--"
    return "< 0.001" if value < 1e-3 else f"{value:.3f}"


def _escaped(text: str) -> str:
    return "".join(_SPECIAL.get(sign, sign) for sign in text).replace("±", r"$\pm$")


def _protected(cell: str) -> str:
    r"""Return the first cell of a row so that the ``\\`` or rule before it reads no option of it.

    Example:
        >>> _protected("[A]"), _protected("*A"), _protected("A [1]*")
        ('{[}A]', '{*}A', 'A [1]*')
    """
    return re.sub(r"^(\s*)([\[*])", r"\1{\2}", cell)


def _latex(cell: str | Number) -> str:
    if isinstance(cell, str):
        return _escaped(cell)
    text = re.sub(r"([+-])(?=\d)", lambda sign: f"${sign[1]}$", _escaped(cell.text))
    text = text.replace(r"\textless{}", "$<$")
    text = rf"\textbf{{{text}}}" if cell.best else text
    return rf"{text} $\pm$ {cell.spread}" if cell.spread else text


def _plain(text: str) -> str:
    return re.sub(r"([\\`*_|<>\[\]])", r"\\\1", text)


def _marked(cell: str | Number) -> str:
    if isinstance(cell, str):
        return _plain(cell)
    text = _plain(cell.text.replace("--", "\u2013")).replace("-", "\u2212")
    text = f"**{text}**" if cell.best else text
    return f"{text} ± {cell.spread}" if cell.spread else text
