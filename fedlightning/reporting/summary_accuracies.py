"""What the closing summary says of accuracies."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedlightning.reporting.client_records import Spread
from fedlightning.reporting.terminal import INDENT, Painter, bars

if TYPE_CHECKING:
    from fedlightning.reporting.summary import RunSummary

__all__ = ["accuracies", "held_out_accuracies"]


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
