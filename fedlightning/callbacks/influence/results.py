"""What the estimates mean for metrics on test data, and where that is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor

from fedlightning.callbacks.influence.estimates import Estimates
from fedlightning.callbacks.influence.measure import MovedModel, measured
from fedlightning.core.state import State
from fedlightning.engine.loop import FederatedLoop
from fedlightning.errors import did_you_mean
from fedlightning.reporting.figures.save import influence_figure, save_figure
from fedlightning.reporting.influence_table import InfluenceRecord, ranked, write_influence_csv
from fedlightning.storage.run_layout import INFLUENCE, INFLUENCE_FIGURE

__all__ = ["influence_records", "write_influence"]


def influence_records(
    loop: FederatedLoop, estimates: Estimates, parameters: Mapping[str, Tensor], metric: str
) -> list[InfluenceRecord]:
    """Return a record per examined client, ranked; call it on all workers.

    Args:
        loop: The loop; its module holds the global model.
        estimates: The estimates after the last round.
        parameters: The model's parameters that they are of.
        metric: The metric that ranks; if it is not measured, the first one does.
    """
    present, moved = measured(loop), MovedModel(loop, parameters)
    if present and metric not in present:
        rank_zero_warn(
            f"ClientInfluence: metric={metric!r} is not measured on test data; clients are ranked "
            f"by {next(iter(present))!r}.{did_you_mean(metric, present)}"
        )
    names = loop.data.client_names
    records = []
    for client in estimates.clients:
        direction = estimates.value(client, parameters)
        metrics = dict.fromkeys(present, 0.0)
        if client in estimates.values:
            with moved.by(direction):
                without = measured(loop)
            metrics = {n: without[n] - value for n, value in present.items() if n in without}
        records.append(
            InfluenceRecord(
                client,
                loop.data.num_examples(client),
                estimates.turns[client],
                _length(direction),
                len({key for key, _ in estimates.dropped.get(client, ())}),
                metrics,
                names[client] if names is not None else "",
            )
        )
    return ranked(records, _ranks(records, metric))


def write_influence(folder: Path, records: Sequence[InfluenceRecord], metric: str) -> None:
    """Write ``influence.csv`` and ``influence.png``.

    Args:
        folder: The run folder; it is created if missing.
        records: The clients.
        metric: The metric that ranks; if it was not measured, the first one does.

    Raises:
        EnvironmentFailure: A file cannot be written.
    """
    metric = _ranks(records, metric)
    folder.mkdir(parents=True, exist_ok=True)
    write_influence_csv(folder / INFLUENCE, records, metric)
    clients = [record.client_id for record in records]
    by_id = {record.client_id: record.name for record in records}
    named = [by_id.get(client, "") for client in range(max(clients, default=-1) + 1)]
    values = [record.on(metric) for record in records]
    figure = influence_figure(clients, values, metric, names=named if any(named) else None)
    save_figure(figure, folder / INFLUENCE_FIGURE)


def _ranks(records: Sequence[InfluenceRecord], metric: str) -> str:
    names = [name for record in records for name in record.metrics]
    return metric if metric in names or not names else names[0]


def _length(state: State) -> float:
    norms = [torch.linalg.vector_norm(value.cpu().double()) for value in state.values()]
    return float(torch.linalg.vector_norm(torch.stack(norms)))
