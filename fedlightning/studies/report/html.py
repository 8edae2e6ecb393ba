"""Building blocks of the report's page: a self-contained HTML document."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence

from fedlightning.core.main_metric import MainMetric

__all__ = [
    "DASH",
    "MINUS",
    "collapsible",
    "document",
    "number",
    "paragraph",
    "percent",
    "section",
    "shown",
    "table",
]

DASH = "\u2013"
"""Shown for an unknown number."""

MINUS = "\u2212"
"""As long as a plus, unlike a hyphen."""

_STYLE = """
:root { color-scheme: light dark; --ink: #1f2933; --muted: #5a6775; --grid: #d9dee4;
  --page: #ffffff; --card: #f5f7f9; --accent: #0072b2; --warn: #fff4e0; --warn-ink: #7a4500; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6eaee; --muted: #a3afbb; --grid: #3a444e;
  --page: #14181c; --card: #1d2329; --accent: #6cb8ea; --warn: #3a2c12; --warn-ink: #ffd591; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 1rem; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: .6rem 0; }
h2 { font-size: 1.25rem; margin: 2.2rem 0 .5rem; border-bottom: 1px solid var(--grid); }
h3 { font-size: 1.05rem; margin: 1.4rem 0 .4rem; }
h4 { font-size: .95rem; margin: 1.2rem 0 .3rem; }
p { margin: .5rem 0; max-width: 52rem; }
p.note, figcaption { color: var(--muted); font-size: .9rem; }
nav a { margin-right: 1rem; }
a { color: var(--accent); }
.scroll { overflow-x: auto; margin: .6rem 0; border: 1px solid var(--grid); border-radius: 6px; }
.scroll { width: fit-content; max-width: 100%; }
table { border-collapse: collapse; font-size: .9rem;
  font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .6rem; text-align: right; white-space: nowrap; vertical-align: top; }
td.wide { white-space: normal; min-width: 9rem; text-align: left; overflow-wrap: anywhere; }
th { background: var(--card); color: var(--muted); font-weight: 600; }
thead th { vertical-align: bottom; }
tbody tr + tr td, tbody tr + tr th { border-top: 1px solid var(--grid); }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0;
  background: var(--card); color: var(--ink); white-space: normal; max-width: 15rem;
  min-width: 6rem; overflow-wrap: anywhere; }
td.best { font-weight: 700; }
.spread { color: var(--muted); font-weight: 400; font-size: .85em; }
figure { margin: .8rem 0; overflow-x: auto; }
svg { width: 100%; height: auto; display: block; }
@media (max-width: 45rem) { figure svg { min-width: 34rem; } body { padding: .6rem; } }
ul.warnings { background: var(--warn); color: var(--warn-ink); border-radius: 6px;
  padding: .7rem .8rem .7rem 2rem; margin: .8rem 0; overflow-wrap: anywhere; }
details { margin: .6rem 0; } summary { cursor: pointer; color: var(--accent); }
code { font-size: .9em; overflow-wrap: anywhere; }
@media print { details > * { display: block; } .scroll { overflow: visible; } }
"""


def document(title: str, body: Iterable[str]) -> str:
    """Return a whole page.

    Example:
        >>> "<title>a &amp; b</title>" in document("a & b", [])
        True
    """
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{html.escape(title)}</title>",
            f"<style>{_STYLE}</style>",
            "</head>",
            "<body>",
            *body,
            "</body>",
            "</html>",
            "",
        ]
    )


def section(title: str, anchor: str, parts: Iterable[str], level: int = 2) -> str:
    """Return a heading with its content."""
    heading = f'<h{level} id="{html.escape(anchor)}">{html.escape(title)}</h{level}>'
    return "\n".join([heading, *parts])


def paragraph(text: str, note: bool = False) -> str:
    """Return a paragraph of plain text."""
    kind = ' class="note"' if note else ""
    return f"<p{kind}>{html.escape(text)}</p>"


def collapsible(summary: str, content: str) -> str:
    """Return content that is shown on a click."""
    return f"<details><summary>{html.escape(summary)}</summary>\n{content}\n</details>"


def table(
    header: Sequence[str],
    rows: Iterable[Sequence[str]],
    best: Iterable[tuple[int, int]] = (),
    wide: Iterable[int] = (),
) -> str:
    r"""Return a table that scrolls horizontally on a narrow screen.

    Args:
        header: The columns' names; ``\n`` breaks them.
        rows: The cells, as HTML; the first of a row names it.
        best: Row and column of cells to emphasise.
        wide: Columns of text that may wrap.
    """
    stressed, wrapping = set(best), set(wide)
    lines = ['<div class="scroll"><table>', "<thead><tr>"]
    names = [html.escape(name).replace("\n", "<br>") for name in header]
    lines += [f'<th scope="col">{name}</th>' for name in names]
    lines.append("</tr></thead><tbody>")
    for at, row in enumerate(rows):
        cells = []
        for column, cell in enumerate(row):
            kinds = ["best"] * ((at, column) in stressed) + ["wide"] * (column in wrapping)
            kind = f' class="{" ".join(kinds)}"' if kinds else ""
            cells.append(f"<td{kind}>{cell}</td>")
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return "\n".join([*lines, "</tbody></table></div>"])


def percent(value: float, spread: float = math.nan, signed: bool = False) -> str:
    """Return a fraction in percent, with the spread after a ±.

    Example:
        >>> percent(0.5), percent(-0.011, signed=True), percent(float("nan"))
        ('50.0', '−1.1', '–')
    """
    if math.isnan(value):
        return DASH
    rounded = round(100 * value, 1) + 0.0  # no minus before a zero
    text = f"{rounded:{'+' if signed and rounded else ''}.1f}".replace("-", MINUS)
    if math.isnan(spread):
        return text
    return f'{text} <span class="spread">± {100 * spread:.1f}</span>'


def shown(
    value: float, spread: float = math.nan, signed: bool = False, *, metric: MainMetric
) -> str:
    """Return a value of the main metric, with the spread after a ±: accuracies in percent.

    Example:
        >>> shown(0.5, metric=MainMetric()), shown(-12.345, signed=True, metric=MainMetric("mae"))
        ('50.0', '−12.35')
    """
    if metric.is_share:
        return percent(value, spread, signed)
    if math.isnan(value):
        return DASH
    text = f"{value:{'+' if signed and value else ''}.4g}".replace("-", MINUS)
    if math.isnan(spread):
        return text
    return f'{text} <span class="spread">± {spread:.2g}</span>'


def number(value: float, unit: str = "") -> str:
    """Return a number with three significant digits, or a dash.

    Example:
        >>> number(1234567.0), number(0.5, "s"), number(float("nan"))
        ('1.23 M', '0.5 s', '–')
    """
    if math.isnan(value):
        return DASH
    for size, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 10 * size or (size > 1e3 and abs(value) >= size):
            return f"{value / size:.3g} {prefix}{unit}"
    text = f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{text} {unit}".rstrip()
