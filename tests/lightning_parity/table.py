"""The idioms as a table for the documentation, made by running the comparisons.

``python -m tests.lightning_parity.table [NAME ...]`` prints it;
``python -m tests.lightning_parity.table --write docs/lightning.md`` puts it into the documentation.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import math
import os
import tempfile
import warnings
from collections.abc import Collection, Iterator
from pathlib import Path

import torch

from tests.lightning_parity.comparison import Difference, Outcome, one_client, three_clients
from tests.lightning_parity.idiom import Idiom
from tests.lightning_parity.idioms import IDIOMS, THEMES
from tests.lightning_parity.workers import two_workers

BEGIN, END = "<!-- idioms -->", "<!-- end of idioms -->"
HEADER = (
    "| idiom | plain Lightning | here | same, or why not |",
    "|---|---|---|---|",
)


def table(names: Collection[str] = ()) -> Iterator[str]:
    """Yield the lines of the table.

    Args:
        names: The idioms to show; empty means all.
    """
    for theme, idioms in THEMES.items():
        chosen = [idiom for idiom in idioms if not names or idiom.name in names]
        if chosen:
            yield from ("", f"### {theme}", "", *HEADER)
            yield from map(row, chosen)


def row(idiom: Idiom) -> str:
    """Return an idiom's line: what it is, a number on either side, and whether all is the same."""
    outcomes: dict[str, Outcome] = {}
    if idiom.one:
        outcomes["one client"] = one_client(idiom)
    if idiom.three and idiom.refused is None:
        outcomes["three clients"] = three_clients(idiom)
        if idiom.personal:
            outcomes["fine-tuned"] = three_clients(idiom, fine_tune=True)
        if idiom.quick_workers:
            with tempfile.TemporaryDirectory() as folder:
                outcomes["two workers"] = Outcome(two_workers(idiom, Path(folder)))
    shown = next(iter(outcomes.values()))
    cells = (
        idiom.title,
        "refused" if idiom.in_plain_too else _number(idiom, shown.right),
        _number(idiom, shown.got),
        _verdict(idiom, outcomes),
    )
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _verdict(idiom: Idiom, outcomes: dict[str, Outcome]) -> str:
    wrong = {
        where: outcome.differences for where, outcome in outcomes.items() if outcome.differences
    }
    if wrong:
        return "; ".join(f"{where}: {_first(found)}" for where, found in wrong.items())
    refusal = next((outcome.refusal for outcome in outcomes.values() if outcome.refusal), "")
    if refusal:
        return f"refused: {idiom.why or refusal}"
    return f"same, {', '.join(outcomes)}" + (f"; {idiom.why}" if idiom.why else "")


def _first(differences: list[Difference]) -> str:
    text = " ".join(str(differences[0]).split())
    more = f" (and {len(differences) - 1} more)" if len(differences) > 1 else ""
    return text[:160] + more


def _number(idiom: Idiom, value: float | str) -> str:
    if isinstance(value, str):
        return value
    return "" if math.isnan(value) else f"`{idiom.show}` {value:.4f}"


def main() -> None:
    """Print the table of the idioms that are named, or of all; or write it into a document."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--write", type=Path, help="a document with the two marks")
    args = parser.parse_args()
    if unknown := {*args.names} - {idiom.name for idiom in IDIOMS}:
        parser.error(f"no idiom of the name {', '.join(sorted(unknown))}")
    document = args.write.resolve() if args.write is not None else None
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    os.chdir(tempfile.mkdtemp())
    lines, written = table(args.names), list[str]()
    while True:
        with contextlib.redirect_stdout(io.StringIO()):  # progress bars and summaries
            line = next(lines, None)
        if line is None:
            break
        written.append(line)
        print(line, flush=True)
    if document is not None:
        before, rest = document.read_text().split(BEGIN)
        _, after = rest.split(END)
        text = "\n".join([before + BEGIN, *written, "", END + after])
        document.write_text(text)


if __name__ == "__main__":
    main()
