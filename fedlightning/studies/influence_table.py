"""What leaving clients out has shown, beside what was estimated: table, figure, correlation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from fedlightning.core.client_names import NAME_COLUMN, short_label
from fedlightning.core.statistics import rank_correlation
from fedlightning.reporting.figures.save import (
    influence_figure,
    leave_one_out_figure,
    save_figure,
)
from fedlightning.reporting.influence_table import InfluenceRecord
from fedlightning.storage.checkpoint_reader import read_checkpoint
from fedlightning.storage.csv_files import write_csv
from fedlightning.storage.run_layout import (
    CHECKPOINTS,
    LAST_CHECKPOINT,
    LEAVE_ONE_OUT,
    LEAVE_ONE_OUT_FIGURE,
    client_names_in,
)

__all__ = ["LeftOut", "estimated_parameters", "main_metric", "parameters_of", "write_left_out"]

_OBSERVES = "ClientInfluence"
_MOST_ROWS = 60


@dataclass(frozen=True)
class LeftOut:
    """One client, and what the run without it has shown.

    Args:
        client: The client.
        truth: Change of each metric on test data.
        estimate: The estimated change of each; empty if the run had no estimates of this client.
        distance: Length of the change of the parameters.
        cosine: Cosine between that change and the estimated one; nan if either is unknown or zero.
    """

    client: int
    truth: Mapping[str, float]
    estimate: Mapping[str, float] = field(default_factory=dict)
    distance: float = math.nan
    cosine: float = math.nan

    @classmethod
    def of(
        cls,
        client: int,
        truth: Mapping[str, float],
        estimate: InfluenceRecord | None,
        moved: Mapping[str, Tensor],
        estimated: Mapping[str, Tensor] | None,
    ) -> LeftOut:
        """Return the record of a client.

        Args:
            client: The client.
            truth: Change of each metric.
            estimate: Its row of estimates, if there is one.
            moved: The change of its parameters, by key.
            estimated: The estimated change, if there is one.
        """
        keys = [key for key in moved if estimated is None or key in estimated]
        change = _flat([moved[key] for key in keys])
        guess = _flat([estimated[key] for key in keys]) if estimated is not None else None
        length = float(change.norm())
        product = length * float(guess.norm()) if guess is not None else 0.0
        cosine = float(change @ guess) / product if guess is not None and product else math.nan
        return cls(client, truth, estimate.metrics if estimate else {}, length, cosine)


def main_metric(names: Sequence[str], wanted: str | None = None) -> str:
    """Return the metric to rank by: the one wanted, else the global model's loss, else the first.

    Example:
        >>> main_metric(["global/acc", "global/loss"]), main_metric(["test/mae"])
        ('global/loss', 'test/mae')
    """
    if wanted in names:
        return str(wanted)
    return next((name for name in ("global/loss", "test/loss") if name in names), names[0])


def parameters_of(run: Path) -> dict[str, Tensor]:
    """Return the floating-point tensors of a run's newest global model, float64.

    Raises:
        CheckpointError: It has no checkpoint, or a damaged one.
    """
    state = read_checkpoint(run / CHECKPOINTS / LAST_CHECKPOINT)["state_dict"]
    return {
        key: value.double()
        for key, value in state.items()
        if isinstance(value, Tensor) and value.is_floating_point()
    }


def estimated_parameters(run: Path) -> dict[int, dict[str, Tensor]]:
    """Return the estimates in a run's newest checkpoint, by client; empty if it has none."""
    path = run / CHECKPOINTS / LAST_CHECKPOINT
    if not path.is_file():
        return {}
    callbacks: Mapping[str, Mapping[str, dict[str, dict[int, dict[str, Tensor]]]]]
    callbacks = read_checkpoint(path).get("callbacks") or {}
    found = [state for key, state in callbacks.items() if key.startswith(_OBSERVES)]
    values = found[-1]["estimates"]["values"] if found and found[-1] else {}
    return {
        client: {key: value.double() for key, value in state.items()}
        for client, state in values.items()
    }


def write_left_out(output: Path, records: Sequence[LeftOut], metric: str) -> str:
    """Write table and figure into a folder, and return the table as text.

    Args:
        output: The folder.
        records: One record per client.
        metric: The metric that ranks them.

    Raises:
        EnvironmentFailure: A file cannot be written.
    """
    ordered = sorted(
        records, key=lambda record: (record.truth.get(metric, math.inf), record.client)
    )
    names = list(dict.fromkeys(name for record in ordered for name in record.truth))
    names.sort(key=lambda name: name != metric)
    known = [record for record in ordered if metric in record.estimate]
    guessed = [name for name in names if any(name in record.estimate for record in ordered)]
    called = client_names_in(output.parent)
    header = ["client_id", "parameters", "cosine", *(f"truth/{name}" for name in names)]
    rows = [
        [r.client, r.distance, r.cosine, *(r.truth.get(name, math.nan) for name in names),
         *(r.estimate.get(name, math.nan) for name in guessed),
         *([called[r.client]] if called else [])]
        for r in ordered
    ]  # fmt: skip
    header += [f"estimate/{name}" for name in guessed] + ([NAME_COLUMN] if called else [])
    write_csv(output / LEAVE_ONE_OUT, header, rows)
    truth = [record.truth[metric] for record in known]
    estimates = [record.estimate[metric] for record in known]
    correlation = rank_correlation(truth, estimates)
    if known:
        clients = [record.client for record in known]
        figure = leave_one_out_figure(clients, truth, estimates, metric, correlation, called)
    else:
        clients = [record.client for record in ordered]
        values = [record.truth.get(metric, math.nan) for record in ordered]
        figure = influence_figure(clients, values, metric, what="Influence", names=called)
    save_figure(figure, output / LEAVE_ONE_OUT_FIGURE)
    return _text(ordered, metric, correlation, called)


def _text(
    records: Sequence[LeftOut], metric: str, correlation: float, names: Sequence[str] | None
) -> str:
    guessed = any(metric in record.estimate for record in records)
    lines = [f"change of {metric} without the client"]
    wide = max([6, *(len(short_label(r.client, names)) for r in records[:_MOST_ROWS])])
    lines.append(
        f"  {'client':<{wide}}       truth"
        + ("    estimate  cosine of parameters" if guessed else "")
    )
    for record in records[:_MOST_ROWS]:
        value = record.truth.get(metric, math.nan)
        line = f"  {short_label(record.client, names):>{wide}}  {value:>+10.5f}"
        if guessed:
            line += f"  {record.estimate.get(metric, math.nan):>+10.5f}  {record.cosine:>6.3f}"
        lines.append(line)
    if len(records) > _MOST_ROWS:
        lines.append(f"  {len(records) - _MOST_ROWS} more in {LEAVE_ONE_OUT}")
    if not math.isnan(correlation):
        lines.append(f"Spearman's rank correlation of estimate and truth: {correlation:.3f}")
    return "\n".join(lines)


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    if not tensors:
        return torch.zeros(0, dtype=torch.float64)
    return torch.cat([value.flatten() for value in tensors])
