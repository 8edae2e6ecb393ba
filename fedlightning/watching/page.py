"""The live page: one document, and the part of it that changes."""

from __future__ import annotations

import base64
import hashlib
import html
import math
import time
from collections.abc import Sequence
from datetime import datetime

from fedlightning.core.main_metric import MainMetric
from fedlightning.reporting.client_records import ClientRecord
from fedlightning.reporting.terminal import duration
from fedlightning.studies.report.html import (
    DASH,
    collapsible,
    document,
    number,
    paragraph,
    section,
    shown,
    table,
)
from fedlightning.studies.run_reader import Run
from fedlightning.watching.figures import clients_drawing, curve_drawings, looks_of
from fedlightning.watching.runs import WatchedRun

__all__ = ["POLICY", "live_part", "whole_page"]

_SECONDS = 2
_MOST_CLIENTS = 200
_MOST_ROUNDS = 8

_STYLE = """
<style>
.state { border-radius: 999px; padding: .05rem .6rem; font-size: .85rem; font-weight: 600;
  border: 1px solid currentColor; white-space: nowrap; }
.running { color: #0072b2; } .finished { color: #00785a; } .failed, .killed { color: #b3410e; }
.starting, .stopped { color: var(--muted); }
@media (prefers-color-scheme: dark) { .running { color: #6cb8ea; } .finished { color: #4fc9a4; }
  .failed, .killed { color: #ff9d6b; } }
progress { width: 7rem; height: .7rem; accent-color: var(--accent); vertical-align: middle; }
.swatch { display: inline-block; width: 1.4rem; height: 0; border-top: 3px solid;
  margin-right: .4rem; vertical-align: middle; }
.panels { display: flex; flex-wrap: wrap; gap: .6rem; }
.panels figure { flex: 1 1 20rem; margin: 0; } .panels svg { min-width: 0 !important; }
.error { color: #b3410e; overflow-wrap: anywhere; }
@media (prefers-color-scheme: dark) { .error { color: #ff9d6b; } }
#gone { display: none; } #gone.shown { display: block; }
td.wide { max-width: 26rem; }
@media (max-width: 45rem) { #live > .scroll :is(th, td):first-child { white-space: normal;
  min-width: 6rem; max-width: 8.5rem; overflow-wrap: anywhere; } progress { width: 4rem; } }
</style>
"""

_SCRIPT = """
const live = document.getElementById("live"), gone = document.getElementById("gone");
let tag = "";
async function refresh() {
  if (!document.hidden) {
    try {
      const headers = tag ? {"If-None-Match": tag} : {};
      const answer = await fetch("live", {cache: "no-store", headers});
      if (answer.status === 200) {
        const open = [...live.querySelectorAll("details[open]")].map(each => each.dataset.key);
        live.innerHTML = await answer.text();
        for (const each of live.querySelectorAll("details"))
          if (open.includes(each.dataset.key)) each.open = true;
        tag = answer.headers.get("ETag") || "";
      }
      gone.classList.toggle("shown", !answer.ok && answer.status !== 304);
    } catch (error) { gone.classList.add("shown"); }
  }
  setTimeout(refresh, SECONDS * 1000);
}
refresh();
"""
_SCRIPT = _SCRIPT.replace("SECONDS", str(_SECONDS))

_HASH = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
POLICY = (
    f"default-src 'none'; script-src 'sha256-{_HASH}'; style-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""The page loads nothing, runs one script and asks only this server."""


def whole_page(title: str, live: str) -> str:
    """Return the document; it works without scripts, too, by loading itself again."""
    return document(
        f"{title}: fedlightning watch",
        [
            _STYLE,
            f'<noscript><meta http-equiv="refresh" content="{_SECONDS * 3}"></noscript>',
            f"<h1>{html.escape(title)}</h1>",
            '<ul class="warnings" id="gone"><li>No answer: watch has ended. What is below is the '
            "last that was seen.</li></ul>",
            f'<main id="live">{live}</main>',
            f"<script>{_SCRIPT}</script>",
        ],
    )


def live_part(runs: Sequence[WatchedRun], folders: Sequence[str]) -> str:
    """Return what changes: the table of runs, curves, and each run's clients and failures."""
    if not runs:
        return paragraph(f"No run in {', '.join(folders)} yet. This page waits for one.")
    parts = [paragraph(_count(runs)), _runs_table(runs)]
    if drawings := curve_drawings(runs):
        figures = "".join(f"<figure>{drawing}</figure>" for drawing in drawings)
        parts.append(section("Curves", "curves", [f'<div class="panels">{figures}</div>']))
    parts.append(section("Clients", "clients", [_clients(run, len(runs) == 1) for run in runs]))
    return "\n".join(parts)


def _count(runs: Sequence[WatchedRun]) -> str:
    states = [run.state for run in runs]
    counted = [f"{states.count(each)} {each}" for each in dict.fromkeys(states)]
    return f"{len(runs)} {'run' if len(runs) == 1 else 'runs'}: {', '.join(counted)}"


def _runs_table(runs: Sequence[WatchedRun]) -> str:
    looks = looks_of(runs) if len(runs) > 1 else {}
    main = next((run.run.main_metric for run in runs if run.run is not None), MainMetric())
    header = ["run", "state", "rounds", "left", "last round", f"{main.title}\nglobal, last",
              "best", "personalized", "failed\nupdates", "why"]  # fmt: skip
    rows = []
    for run in runs:
        colour, dashes = looks.get(run.name, ("", "-"))
        line = "solid" if dashes == "-" else "dashed"
        drawn = f"border-top-color:{colour};border-top-style:{line}"
        swatch = f'<span class="swatch" style="{drawn}"></span>' if colour else ""
        rows.append(
            [
                f"{swatch}{html.escape(run.name)}",
                f'<span class="state {run.state}">{run.state}</span>',
                _progress(run),
                DASH if math.isnan(run.seconds_left) else html.escape(duration(run.seconds_left)),
                _clock(run.changed),
                *_values(run.run),
                str(sum(run.failures.values())) if run.run is not None else DASH,
                f'<span class="error">{html.escape(run.note)}</span>' if run.note else "",
            ]
        )
    if not any(run.note for run in runs):
        header, rows = header[:-1], [row[:-1] for row in rows]
    return table(header, rows, wide=[len(header) - 1] if header[-1] == "why" else [])


def _progress(run: WatchedRun) -> str:
    if run.rounds_wanted is None:
        return str(run.rounds_done)
    done = min(run.rounds_done, run.rounds_wanted)
    label = html.escape(f"{done} of {run.rounds_wanted} rounds", quote=True)
    bar = f'<progress max="{run.rounds_wanted}" value="{done}" aria-label="{label}"></progress>'
    return f"{bar} {done}/{run.rounds_wanted}"


def _clock(seconds: float) -> str:
    if math.isnan(seconds):
        return DASH
    moment = datetime.fromtimestamp(seconds)
    today = time.localtime()[:3] == moment.timetuple()[:3]
    return f"{moment:%H:%M:%S}" if today else f"{moment:%Y-%m-%d %H:%M}"


def _values(run: Run | None) -> list[str]:
    if run is None:
        return [DASH] * 3
    main = run.main_metric
    values = run.metrics.get(main.column(run.metrics) or "")
    best = main.best([float(v) for v in values]) if values is not None else math.nan
    numbers = (run.last_global(), best, run.last(f"personalized/{main.name}"))
    return [f"{shown(value, metric=main)}{_unit(value, main)}" for value in numbers]


def _unit(value: float, main: MainMetric) -> str:
    return "" if math.isnan(value) else main.unit


def _clients(run: WatchedRun, alone: bool) -> str:
    parts = []
    if run.examples:
        sizes = sorted(run.examples.values())
        parts.append(
            paragraph(
                f"{len(sizes)} clients, {sizes[0]} to {sizes[-1]} training examples each (median "
                f"{sizes[len(sizes) // 2]})."
            )
        )
    parts += _failures(run)
    if run.run is not None and run.run.clients:
        parts += _personalized(run.run)
    elif run.run is not None:
        parts.append(paragraph("Client by client after personalization.", note=True))
    body = "\n".join(parts) or paragraph("Nothing yet.", note=True)
    if alone:
        return body
    key = html.escape(run.name, quote=True)
    return collapsible(run.name, body).replace("<details>", f'<details data-key="{key}">', 1)


def _failures(run: WatchedRun) -> list[str]:
    if not run.failures:
        return []
    causes = ", ".join(f"{number} {cause}" for cause, number in run.failures.items())
    rounds = run.failed_by_round
    shown_rounds = ", ".join(f"{at} ({failed})" for at, failed in rounds[-_MOST_ROUNDS:])
    before = "..., " if len(rounds) > _MOST_ROUNDS else ""
    return [
        f'<p class="error">{html.escape(f"Failed client updates: {causes}.")} '
        f"{html.escape(f'Rounds: {before}{shown_rounds}.')}</p>"
    ]


def _personalized(run: Run) -> list[str]:
    main = run.main_metric
    found = [record for record in run.clients if not math.isnan(record.after(main.name))]
    worst_first = sorted(found, key=lambda record: main.sign * record.after(main.name))
    listed = worst_first[:_MOST_CLIENTS]
    rows = [[*_client_cells(record, main)] for record in listed]
    header = ["client", "train", "test", f"{main.title}\nbefore", "after"]
    which = "all" if len(listed) == len(found) else f"the worst {len(listed)}"
    title = f"{len(found)} clients after personalization, the worst first ({which})"
    inside = collapsible(title, table(header, rows))
    keyed = inside.replace(
        "<details>", f'<details data-key="{html.escape(str(run.folder), quote=True)}">', 1
    )
    return [f"<figure>{clients_drawing(run)}</figure>", keyed]


def _client_cells(record: ClientRecord, main: MainMetric) -> list[str]:
    return [
        html.escape(record.name or str(record.client_id)),
        number(record.num_train),
        number(record.num_test),
        shown(record.before(main.name), metric=main),
        shown(record.after(main.name), metric=main),
    ]
