"""The table for the documentation."""

from __future__ import annotations

from pathlib import Path

from tests.lightning_parity.idioms import AVERAGING, IDIOMS
from tests.lightning_parity.table import BEGIN, END, HEADER, table


def test_idioms_have_names_and_titles_of_their_own():
    assert len(IDIOMS) >= 40
    assert len({idiom.name for idiom in IDIOMS}) == len(IDIOMS)
    assert len({idiom.title for idiom in IDIOMS}) == len(IDIOMS)


def test_the_table_shows_both_numbers_or_why_there_are_none():
    lines = list(table(["clip_norm", "rate_finder"]))
    assert [line for line in lines if line.startswith("#")] == ["### Optimization", "### Callbacks"]
    assert lines.count(HEADER[0]) == 2
    clipped, finder = (
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in lines
        if line.startswith(("| gradients clipped", "| `LearningRateFinder`"))
    )
    assert clipped[1] == clipped[2]
    assert clipped[1].startswith("`val/loss` ")
    assert clipped[3] == "same, one client, three clients"
    assert finder == ["`LearningRateFinder`", "", "refused", "refused: it trains outside of rounds"]


def test_the_documentation_shows_every_idiom_and_no_difference():
    document = (Path(__file__).parents[2] / "docs" / "lightning.md").read_text()
    shown = document.split(BEGIN)[1].split(END)[0].splitlines()
    rows = [line for line in shown if line.startswith("| ") and line not in HEADER]
    titles = [row.split(" | ")[0].removeprefix("| ") for row in rows]
    of_newer_versions = {idiom.title for idiom in AVERAGING} - {idiom.title for idiom in IDIOMS}
    assert [title for title in titles if title not in of_newer_versions] == [
        idiom.title.replace("|", "\\|") for idiom in IDIOMS
    ]
    assert not [row for row in rows if "right " in row]
