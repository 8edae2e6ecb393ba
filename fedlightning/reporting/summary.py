"""The closing summary of a run, for the terminal."""

from __future__ import annotations

import math
import os
import shutil
import sys
import textwrap
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import TextIO

from fedlightning.core.main_metric import MainMetric
from fedlightning.core.statistics import Spread
from fedlightning.core.views import HELD_OUT
from fedlightning.reporting.terminal import INDENT, Painter, bars, duration
from fedlightning.storage.run_layout import (
    CHECKPOINTS,
    CLIENT_STATES,
    CLIENTS,
    CLIENTS_FIGURE,
    CONFIG,
    CURVES_FIGURE,
    FINETUNING,
    FINETUNING_FIGURE,
    FORGETTING_FIGURE,
    HPARAMS,
    INFLUENCE,
    INFLUENCE_FIGURE,
    METRICS,
    PARTITION,
    PARTITION_FIGURE,
    PARTITION_TABLE,
    PERSONAL_MODELS,
    PRIVACY,
    ROUNDS,
    TIMELINE,
    TIMELINE_FIGURE,
)

__all__ = ["RunSummary", "ViewSummary", "accuracies", "render", "view_accuracies"]

_DONE = "all rounds done"
_FILES = {
    CONFIG: "every setting; runs again as it is",
    HPARAMS: "the model's settings",
    METRICS: "one row per round",
    ROUNDS: "seconds and cohort of each round",
    CLIENTS: "one row per client, before and after personalization",
    CLIENTS_FIGURE: "clients.csv as a picture",
    INFLUENCE: "what the global model would be without each client",
    INFLUENCE_FIGURE: "influence.csv as a picture",
    FINETUNING: "the main metric after each epoch of fine-tuning",
    FINETUNING_FIGURE: "finetuning.csv as a picture",
    FORGETTING_FIGURE: "what the model forgets of clients",
    PRIVACY: "what was released with noise, and what that has cost",
    PERSONAL_MODELS: "what each client's own model does not share; export makes it whole",
    CURVES_FIGURE: "metrics over the rounds",
    TIMELINE: "each update: client, model version, simulated times",
    TIMELINE_FIGURE: "timeline.csv as a picture",
    PARTITION_TABLE: "examples of each class that each client holds",
    PARTITION: "which client has which example; PartitionFile reads it",
    PARTITION_FIGURE: "partition.csv as a picture",
    CLIENT_STATES: "what clients keep; the checkpoints need it",
    CHECKPOINTS: "resume from last.ckpt with --ckpt_path",
}


_FILES_OF_VIEWS = (CLIENTS, FINETUNING)


@dataclass(frozen=True)
class ViewSummary:
    """Accuracies in a view beside the main one.

    Args:
        name: Name of the view.
        split: The split that it measures on.
        clients: How many clients it stands for; 0 for data that belongs to no client.
        before: The global model.
        after: Personalized models, if there are any.
    """

    name: str
    split: str
    clients: int
    before: Spread
    after: Spread | None = None


@dataclass(frozen=True)
class RunSummary:
    """What a run did and where its files are. Accuracies are in 0..1.

    ``metric`` says what the spreads and values are of, if not of accuracy.

    Args:
        algorithm: Name of the algorithm.
        rounds: Rounds done.
        clients: Clients that may train.
        cohort_size: Clients per round; where that varies, the expected number.
        seconds: Wall time.
        global_acc: Global model on each client's own test data, at the last validation.
        before: Global model on each client's own test data, at the last personalization.
        after: Personalized models on the same data.
        nearest_mean_acc: Accuracy of nearest class means in the space of the body's features.
        part: What personalization trained: ``full``, ``body`` or ``head``.
        stopped: Why the run ended.
        folder: Folder of the run.
        files: Names in ``folder`` to list.
        before_values: Each client's accuracy before, for the histogram.
        after_values: Each client's accuracy after.
        evaluated: How many clients were evaluated; ``None`` means all.
        untested: How many of these have no test data; ``None`` means all those without an accuracy.
        views: The other views.
        keeps_parts: Whether each client keeps parts of the model, so that none has the global one.
        clock: What the simulated clock says, if the schedule has one.
        sized: Whether all rounds have as many clients.
        privacy: What was promised to whom and at which cost, line by line.
        metric: The metric that counts.
    """

    algorithm: str
    rounds: int
    clients: int
    cohort_size: int
    seconds: float
    global_acc: Spread | None = None
    before: Spread | None = None
    after: Spread | None = None
    nearest_mean_acc: float | None = None
    part: str | None = None
    stopped: str = _DONE
    folder: Path | None = None
    files: tuple[str, ...] = ()
    before_values: tuple[float, ...] = ()
    after_values: tuple[float, ...] = ()
    evaluated: int | None = None
    untested: int | None = None
    views: tuple[ViewSummary, ...] = ()
    keeps_parts: bool = False
    clock: str = ""
    sized: bool = True
    privacy: tuple[str, ...] = ()
    metric: MainMetric = field(default_factory=MainMetric)


def render(
    summary: RunSummary,
    width: int | None = None,
    color: bool | None = None,
    stream: TextIO | None = None,
) -> str:
    """Return the summary as lines of text, without a newline at the end.

    Args:
        summary: The summary.
        width: Columns; by default those of the terminal, at most 80. Histograms, then spreads, are
            left out where they do not fit; paths are not cut.
        color: Whether to use ANSI colours; by default where ``stream`` is a terminal and
            ``NO_COLOR`` is not set.
        stream: Where the text will be printed, by default ``sys.stdout``. If its encoding lacks
            the box-drawing characters, the text is plain ASCII.

    Example:
        >>> spread = Spread.of([0.5, 0.75, 1.0])
        >>> summary = RunSummary("FedBABU", 80, 3, 2, 192.4, after=spread, part="head")
        >>> print(render(summary, width=58, color=False))
        ── FedBABU ──────────────────────────── all rounds done ──
        <BLANKLINE>
          80 rounds · 2 of 3 clients a round · 3 min 12 s
        <BLANKLINE>
          accuracy on the clients' own test data
          after (head)   75.0 %  ± 20.4  (min  50.0, p10  55.0)
        <BLANKLINE>
        ──────────────────────────────────────────────────────────
    """
    stream = stream or sys.stdout
    width = width or min(80, shutil.get_terminal_size().columns)
    painter = Painter.for_stream(stream, color)
    lines = [_heading(summary, width, painter)]
    for block in (
        [INDENT + line for line in (_work_done(summary), summary.clock) if line],
        accuracies(summary, width, painter),
        *(
            view_accuracies(view, summary.part, width, painter, summary.metric)
            for view in summary.views
        ),
        _privacy(summary, width, painter),
        _folder(summary, painter),
    ):
        if block:
            lines += ["", *block]
    lines += ["", painter.paint("dim", "─" * width)]
    return painter.printable("\n".join(line.rstrip() for line in lines))


def _heading(summary: RunSummary, width: int, painter: Painter) -> str:
    rule = "─" * max(2, width - len(summary.algorithm) - len(summary.stopped) - 8)
    return " ".join(
        [
            painter.paint("dim", "──"),
            painter.paint("bold", summary.algorithm),
            painter.paint("dim", rule),
            painter.paint("green" if summary.stopped == _DONE else "yellow", summary.stopped),
            painter.paint("dim", "──"),
        ]
    )


def _work_done(summary: RunSummary) -> str:
    rounds = "1 round" if summary.rounds == 1 else f"{summary.rounds:,} rounds"
    cohort = f"{summary.cohort_size:,} of {summary.clients:,} clients a round"
    if not summary.sized:
        cohort = f"about {cohort}"
    elif summary.cohort_size == summary.clients:
        cohort = f"all {summary.clients:,} clients a round"
    return f"{rounds} · {cohort} · {duration(summary.seconds)}"


def _privacy(summary: RunSummary, width: int, painter: Painter) -> list[str]:
    """Return the lines about privacy; all but the first are dimmed."""
    lines: list[str] = []
    for at, text in enumerate(summary.privacy):
        for line in textwrap.wrap(text, width - len(INDENT)):
            lines.append(INDENT + (painter.paint("dim", line) if at else line))
    return lines


def _folder(summary: RunSummary, painter: Painter) -> list[str]:
    if summary.folder is None:
        return []
    folder = os.path.relpath(summary.folder)
    if folder.startswith(".."):
        folder = os.path.abspath(summary.folder)
    rows = [f"{INDENT}{painter.paint('bold', folder + os.sep)}"]
    width = max((len(name) for name in summary.files), default=0)
    for name in summary.files:
        meaning = _meaning(name)
        if name == CONFIG and _lacks_objects(summary.folder / name):
            meaning = "every setting, and what only this program has"
        rows.append(f"{INDENT * 2}{name:<{width}}  {painter.paint('dim', meaning)}")
    return rows


def _lacks_objects(config: Path) -> bool:
    """Whether a config names objects that only the program of its run had."""
    return config.is_file() and "\n# only in that program" in config.read_text(encoding="utf-8")


def _meaning(name: str) -> str:
    path = PurePath(name)
    if "tfevents" in path.name:
        return "for tensorboard --logdir"
    for file in _FILES_OF_VIEWS:
        if path.name.endswith(f"_{file}"):
            view = path.name.removesuffix(f"_{file}")
            held_out = view == HELD_OUT
            return "the same " + ("of clients that never trained" if held_out else f"in {view}")
    return _FILES.get(path.name) or _FILES.get(path.parts[0], "")


def accuracies(summary: RunSummary, width: int, painter: Painter) -> list[str]:
    """Return the lines about the main view; none if nothing was measured."""
    after_name, metric = _after(summary.part), summary.metric
    values = [summary.before_values, summary.after_values]
    drawn_before, drawn_after = bars(values) if metric.is_share else ("", "")
    measured = [
        ("global model", summary.global_acc, ""),
        ("before", summary.before, drawn_before),
        (after_name, summary.after, drawn_after),
    ]
    if summary.global_acc == summary.before:
        measured[0] = ("global model", None, "")
    spreads = [(name, spread, drawn) for name, spread, drawn in measured if spread is not None]
    if not spreads and summary.nearest_mean_acc is None:
        return []
    label = max(len(name) for name in (after_name, "global model", "nearest mean"))
    drawn = any(values) and width >= label + 67 and metric.is_share
    title = f"{metric.title} on the clients' own test data"
    if summary.evaluated not in (None, summary.clients):
        title = f"{metric.title} on the test data of {summary.evaluated:,} random clients"
    if drawn:
        title = f"{title:<{label + 39}}{'0 %':<15}100 %"
    rows = [INDENT + painter.paint("dim", title)]
    for name, spread, drawing in spreads:
        rows.append(
            _row(name.ljust(label), spread, drawing if drawn else "", width, painter, metric)
        )
    before, after = summary.before or summary.global_acc, summary.after
    if before and after and before.count and after.count:
        rows.append(_gain(after.mean - before.mean, label, painter, metric))
    rows += _fairness(summary, label, width)
    if summary.nearest_mean_acc is not None:
        name = "nearest mean".ljust(label)
        rows.append(f"{INDENT}{name}  {100 * summary.nearest_mean_acc:5.1f} %")
    if summary.keeps_parts and measured[0][1] is not None:
        text = "no client has the global model: each keeps parts of its own"
        rows.append(INDENT + painter.paint("dim", text))
    missing = max((spread.missing for _, spread, _ in spreads), default=0)
    untested = missing if summary.untested is None else min(summary.untested, missing)
    for number, why in (
        (untested, "without test data"),
        (missing - untested, f"with an undefined {metric.title}"),
    ):
        if number:
            rows.append(INDENT + painter.paint("dim", f"{_clients(number)} {why} left out"))
    return rows


def view_accuracies(
    view: ViewSummary,
    part: str | None,
    width: int,
    painter: Painter,
    metric: MainMetric | None = None,
) -> list[str]:
    """Return the lines about a view beside the main one.

    Args:
        view: What was measured.
        part: What personalization trained.
        width: Columns.
        painter: Colours the text.
        metric: The metric that counts; ``None`` means accuracy.
    """
    metric = metric or MainMetric()
    names = [_after(part), "global model"]
    spreads = [("before", view.before), (names[0], view.after)]
    if view.after is None:
        spreads = [("global model", view.before)]
    label = max(map(len, names))
    rows = [INDENT + painter.paint("dim", _title(view, metric))]
    if not view.clients:
        mean = _aligned(view.before.mean, metric)
        return [*rows, f"{INDENT}{'global model'.ljust(label)}  {mean}"]
    for name, spread in spreads:
        if spread is not None:
            rows.append(_row(name.ljust(label), spread, "", width, painter, metric))
    return rows


def _title(view: ViewSummary, metric: MainMetric) -> str:
    what = metric.title
    if not view.clients:
        return f"{what} on {view.name} data, which belongs to no client"
    clients, about = _clients(view.clients), ""
    if view.name == HELD_OUT:
        about = " held out of training"
    elif view.name != view.split:
        about = f" in the view {view.name}"
    counted = view.before.count + view.before.missing
    if counted != view.clients:
        return f"{what} of {counted:,} of the {clients}{about}"
    return f"{what} on the {view.split} data of {clients}{about}"


def _clients(number: int) -> str:
    return "1 client" if number == 1 else f"{number:,} clients"


def _after(part: str | None) -> str:
    return f"after ({part})" if part else "after"


def _gain(gain: float, label: int, painter: Painter, metric: MainMetric) -> str:
    """Return the line about what personalization changes."""
    color = "green" if metric.sign * gain > 0 else "yellow"
    if not metric.is_share:
        word = "gain" if metric.sign > 0 else "change"
        return f"{INDENT}{word.ljust(label)}  {painter.paint(color, f'{gain:+.4g}')}"
    points = round(100 * gain, 1) + 0.0
    color = "green" if points > 0 else "yellow"
    space = " " if abs(points) < 10 else ""
    return f"{INDENT}{'gain'.ljust(label)} {space}{painter.paint(color, f'{points:+.1f} points')}"


def _aligned(value: float, metric: MainMetric) -> str:
    return f"{100 * value:5.1f} %" if metric.is_share else f"{value:7.4g}"


def _fairness(summary: RunSummary, label: int, width: int) -> list[str]:
    """Return the line about the worst tenth; of fewer than ten clients that is the minimum."""
    before, after, metric = summary.before, summary.after or summary.global_acc, summary.metric
    if after is None or after.count < 10:
        return []
    if not metric.is_share:
        worst = f"{INDENT}{'worst tenth'.ljust(label)}  {_aligned(after.worst_decile, metric)}"
        if summary.after and before and before.count:
            worst += f"  ({before.worst_decile:.4g} before)"
        return [worst]
    row = f"{INDENT}{'worst tenth'.ljust(label)}  {100 * after.worst_decile:5.1f} %"
    details = f"  (Jain's index of fairness {_index(after.jain)})"
    if summary.after and before and before.count:
        details = (
            f"  ({100 * before.worst_decile:.1f} before; "
            f"Jain's index {_index(after.jain)}, {_index(before.jain)} before)"
        )
    return [row + details if len(row) + len(details) <= width else row]


def _index(jain: float) -> str:
    return "-" if math.isnan(jain) else f"{jain:.3f}"


def _row(
    name: str, spread: Spread, drawing: str, width: int, painter: Painter, metric: MainMetric
) -> str:
    if not spread.count:
        return f"{INDENT}{name}  no client has test data"
    after = name.startswith("after")
    mean = _aligned(spread.mean, metric)
    row = f"{INDENT}{name}  {painter.paint('bold', mean) if after else mean}"
    if not metric.is_share:
        worst = f"min {spread.min:.4g}" if metric.mode == "max" else f"max {spread.max:.4g}"
        return f"{row}  ± {spread.std:.3g}  ({worst})"
    std, least, p10 = (100 * number for number in (spread.std, spread.min, spread.p10))
    details = f"  ± {std:4.1f}  (min {least:5.1f}, p10 {p10:5.1f})"
    if len(INDENT) + len(name) + 9 + len(details) > width:
        return row
    row += details
    if drawing:
        row += f"  ▕{painter.paint('blue' if after else 'dim', drawing)}▏"
    return row
