"""The closing summary of a run, for a person at a terminal."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TextIO

from fedlightning.core.statistics import Spread
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
    HELD_OUT_CLIENTS,
    HELD_OUT_FINETUNING,
    HPARAMS,
    METRICS,
    PARTITION,
    PARTITION_FIGURE,
    PARTITION_TABLE,
    PERSONAL_MODELS,
    ROUNDS,
)

__all__ = ["RunSummary", "accuracies", "held_out_accuracies", "render"]

_DONE = "all rounds done"
_FILES = {
    CONFIG: "every setting; runs again as it is",
    HPARAMS: "the model's settings",
    METRICS: "one row a round",
    ROUNDS: "seconds and cohort of each round",
    CLIENTS: "one row a client, before and after personalization",
    CLIENTS_FIGURE: "clients.csv as a picture",
    HELD_OUT_CLIENTS: "the same of clients that never trained",
    FINETUNING: "accuracy after each epoch of fine-tuning",
    FINETUNING_FIGURE: "finetuning.csv as a picture",
    HELD_OUT_FINETUNING: "the same of clients that never trained",
    PERSONAL_MODELS: "what each client's own model does not share; export makes it whole",
    CURVES_FIGURE: "metrics over the rounds",
    PARTITION_TABLE: "examples of each class that each client holds",
    PARTITION: "who has which example; PartitionFile reads it",
    PARTITION_FIGURE: "partition.csv as a picture",
    CLIENT_STATES: "what clients keep; the checkpoints need it",
    CHECKPOINTS: "last.ckpt goes on from here with --ckpt_path",
}


@dataclass(frozen=True)
class RunSummary:
    """What a run did and where it left it. Accuracies are in 0..1.

    Args:
        algorithm: Name of the algorithm.
        rounds: Rounds done.
        clients: Clients that may train.
        cohort_size: Clients a round.
        seconds: Wall time.
        global_acc: Global model on each client's own test data, at the last validation.
        before: Global model on each client's own test data, at the last personalization.
        after: Personalized models on the same data.
        nearest_mean_acc: Accuracy of nearest class means in the space of the body's features.
        part: What personalization trained: ``full``, ``body`` or ``head``.
        stopped: Why the run ended.
        folder: Folder of the run.
        files: Names in ``folder`` worth a line each.
        before_values: Each client's accuracy before, for the histogram.
        after_values: Each client's accuracy after.
        evaluated: How many clients the accuracies are of; ``None`` means all.
        held_out: How many clients never train.
        held_out_before: Global model on the test data of those, or of a sample of them.
        held_out_after: Personalized models on the same data.
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
    held_out: int = 0
    held_out_before: Spread | None = None
    held_out_after: Spread | None = None


def render(
    summary: RunSummary,
    width: int | None = None,
    color: bool | None = None,
    stream: TextIO | None = None,
) -> str:
    """Return the summary as lines of text, without a newline at the end.

    Args:
        summary: What to tell.
        width: Columns; by default those of the terminal, at most 80. Histograms, then spreads, are
            left out where they do not fit; a path is never cut.
        color: Whether to use ANSI colours; by default where ``stream`` is a terminal and
            ``NO_COLOR`` is not set.
        stream: Where the text will be printed, by default ``sys.stdout``. If its encoding lacks
            the characters of the drawing, the text is plain ASCII.

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
        [INDENT + _what(summary)],
        accuracies(summary, width, painter),
        held_out_accuracies(summary, width, painter),
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


def _what(summary: RunSummary) -> str:
    rounds = "1 round" if summary.rounds == 1 else f"{summary.rounds:,} rounds"
    cohort = f"{summary.cohort_size:,} of {summary.clients:,} clients a round"
    if summary.cohort_size == summary.clients:
        cohort = f"all {summary.clients:,} clients a round"
    return f"{rounds} · {cohort} · {duration(summary.seconds)}"


def _folder(summary: RunSummary, painter: Painter) -> list[str]:
    if summary.folder is None:
        return []
    folder = os.path.relpath(summary.folder)
    if folder.startswith(".."):
        folder = os.path.abspath(summary.folder)
    rows = [f"{INDENT}{painter.paint('bold', folder + os.sep)}"]
    width = max((len(name) for name in summary.files), default=0)
    for name in summary.files:
        rows.append(f"{INDENT * 2}{name:<{width}}  {painter.paint('dim', _meaning(name))}")
    return rows


def _meaning(name: str) -> str:
    path = PurePath(name)
    if "tfevents" in path.name:
        return "for tensorboard --logdir"
    return _FILES.get(path.name) or _FILES.get(path.parts[0], "")


def accuracies(summary: RunSummary, width: int, painter: Painter) -> list[str]:
    """Return the lines about the clients that may train; none if nothing was measured."""
    after_name = f"after ({summary.part})" if summary.part else "after"
    drawn_before, drawn_after = bars([summary.before_values, summary.after_values])
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
    drawn = bool(summary.before_values or summary.after_values) and width >= label + 67
    title = "accuracy on the clients' own test data"
    if summary.evaluated not in (None, summary.clients):
        title = f"accuracy on the test data of {summary.evaluated:,} random clients"
    if drawn:
        title = f"{title:<{label + 39}}{'0 %':<15}100 %"
    rows = [INDENT + painter.paint("dim", title)]
    for name, spread, drawing in spreads:
        rows.append(_row(name.ljust(label), spread, drawing if drawn else "", width, painter))
    before, after = summary.before or summary.global_acc, summary.after
    if before and after and before.count and after.count:
        points = round(100 * (after.mean - before.mean), 1) + 0.0
        gain = painter.paint("green" if points > 0 else "yellow", f"{points:+.1f} points")
        rows.append(f"{INDENT}{'gain'.ljust(label)} {' ' if abs(points) < 10 else ''}{gain}")
    rows += _fairness(summary, label, width)
    if summary.nearest_mean_acc is not None:
        name = "nearest mean".ljust(label)
        rows.append(f"{INDENT}{name}  {100 * summary.nearest_mean_acc:5.1f} %")
    missing = max((spread.missing for _, spread, _ in spreads), default=0)
    if missing:
        clients = "1 client" if missing == 1 else f"{missing:,} clients"
        rows.append(INDENT + painter.paint("dim", f"{clients} without test data left out"))
    return rows


def held_out_accuracies(summary: RunSummary, width: int, painter: Painter) -> list[str]:
    """Return the lines about the clients that never trained."""
    after_name = f"after ({summary.part})" if summary.part else "after"
    measured = [("before", summary.held_out_before), (after_name, summary.held_out_after)]
    spreads = [(name, spread) for name, spread in measured if spread is not None]
    if not spreads:
        return []
    clients = "1 client" if summary.held_out == 1 else f"{summary.held_out:,} clients"
    title = f"accuracy on the test data of {clients} held out of training"
    counted = spreads[0][1].count + spreads[0][1].missing
    if counted != summary.held_out:
        title = f"accuracy of {counted:,} of the {clients} held out of training"
    if len(spreads) == 1:
        spreads = [("global model", spreads[0][1])]
    label = max(len(name) for name in (after_name, "global model"))
    rows = [INDENT + painter.paint("dim", title)]
    return rows + [_row(name.ljust(label), spread, "", width, painter) for name, spread in spreads]


def _fairness(summary: RunSummary, label: int, width: int) -> list[str]:
    """Say how the worst tenth is served; of fewer than ten clients that is the minimum."""
    before, after = summary.before, summary.after or summary.global_acc
    if after is None or after.count < 10:
        return []
    row = f"{INDENT}{'worst tenth'.ljust(label)}  {100 * after.worst_decile:5.1f} %"
    details = f"  (Jain's index of fairness {after.jain:.3f})"
    if summary.after and before and before.count:
        details = (
            f"  ({100 * before.worst_decile:.1f} before; "
            f"Jain's index {after.jain:.3f}, {before.jain:.3f} before)"
        )
    return [row + details if len(row) + len(details) <= width else row]


def _row(name: str, spread: Spread, drawing: str, width: int, painter: Painter) -> str:
    if not spread.count:
        return f"{INDENT}{name}  no client has test data"
    after = name.startswith("after")
    mean = f"{100 * spread.mean:5.1f} %"
    row = f"{INDENT}{name}  {painter.paint('bold', mean) if after else mean}"
    std, least, p10 = (100 * number for number in (spread.std, spread.min, spread.p10))
    details = f"  ± {std:4.1f}  (min {least:5.1f}, p10 {p10:5.1f})"
    if len(INDENT) + len(name) + 9 + len(details) > width:
        return row
    row += details
    if drawing:
        row += f"  ▕{painter.paint('blue' if after else 'dim', drawing)}▏"
    return row
