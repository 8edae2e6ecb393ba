"""A variant in numbers: accuracy, fairness, cost."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from fedlightning.core.main_metric import MainMetric
from fedlightning.core.statistics import Spread
from fedlightning.studies.results import Group
from fedlightning.studies.run_reader import Run

__all__ = ["Summary", "best", "local_only", "plain_fedavg", "summarise"]


@dataclass(frozen=True)
class Summary:
    """One variant under one condition. Each number is a mean over seeds unless stated otherwise.

    Args:
        condition: The point of the grid.
        variant: The variant.
        algorithm: The class of its algorithm.
        seeds: Number of runs.
        clients: Number of clients with an accuracy, in the run with the fewest.
        acc_before: Mean accuracy over clients before personalization.
        acc_before_std_seeds: Its standard deviation over seeds (``ddof=1``); nan for one seed.
        acc_after: Mean accuracy over clients after personalization.
        acc_after_std_seeds: Its standard deviation over seeds.
        acc_after_std_clients: Standard deviation over clients (``ddof=0``).
        acc_after_min: The worst client.
        acc_after_p10: Tenth percentile over clients.
        acc_after_p90: Ninetieth percentile.
        acc_after_worst_decile: Mean over the worst tenth of the clients, see :class:`Spread`.
        acc_after_jain: Jain's index of fairness, 1 where all clients have the same accuracy.
        global_acc: Accuracy of the global model in the last round that measured it.
        gain_over_local: Mean accuracy after personalization minus that of LocalOnly.
        gain_over_fedavg_ft: The same minus that of FedAvg with personalization.
        bytes_up_per_round: Bytes that all clients of a round send together.
        bytes_down_per_round: Bytes that are sent to them.
        rounds: Number of rounds.
        seconds_training: Duration of training in all rounds, without evaluation.
        seconds_wall: Duration of the whole command.
        seconds_simulated: Simulated time of the last commit; nan without a clock.
        metric: The main metric: where it is not accuracy, all numbers called so are its.
    """

    condition: str
    variant: str
    algorithm: str
    seeds: int
    clients: int
    acc_before: float
    acc_before_std_seeds: float
    acc_after: float
    acc_after_std_seeds: float
    acc_after_std_clients: float
    acc_after_min: float
    acc_after_p10: float
    acc_after_p90: float
    acc_after_worst_decile: float
    acc_after_jain: float
    global_acc: float
    gain_over_local: float
    gain_over_fedavg_ft: float
    bytes_up_per_round: float
    bytes_down_per_round: float
    rounds: float
    seconds_training: float
    seconds_wall: float
    seconds_simulated: float
    metric: MainMetric = field(default_factory=MainMetric)


def summarise(groups: Sequence[Group], view: str = "") -> list[Summary]:
    """Return one summary per group of one condition.

    Args:
        groups: The groups.
        view: The evaluation view; by default the main one.
    """
    local, fedavg = local_only(groups), plain_fedavg(groups)
    return [_summary(group, view, local, fedavg) for group in groups]


def local_only(groups: Sequence[Group]) -> Group | None:
    """Return the group that trained without a federation, if any."""
    return next((group for group in groups if group.algorithm == "LocalOnly"), None)


def plain_fedavg(groups: Sequence[Group]) -> Group | None:
    """Return the group of FedAvg, if any; of several, the one of that name or the first."""
    found = [group for group in groups if group.algorithm == "FedAvg"]
    return next((group for group in found if group.variant == "FedAvg"), next(iter(found), None))


def best(summaries: Sequence[Summary]) -> str:
    """Return the variant with the best mean main metric, after personalization where known."""
    known = [summary for summary in summaries if not math.isnan(_result(summary))]
    sign = summaries[0].metric.sign
    return max(known or summaries, key=lambda summary: sign * _result(summary)).variant


def _result(summary: Summary) -> float:
    return summary.global_acc if math.isnan(summary.acc_after) else summary.acc_after


def _summary(group: Group, view: str, local: Group | None, fedavg: Group | None) -> Summary:
    runs = list(group.runs.values())
    metric = group.main_metric
    before = [metric.spread(run.values("acc_before", view)) for run in runs]
    after = [metric.spread(run.values("acc_after", view)) for run in runs]
    return Summary(
        condition=group.condition,
        variant=group.variant,
        algorithm=group.algorithm,
        seeds=len(runs),
        clients=min(spread.count for spread in after),
        acc_before=_mean([spread.mean for spread in before]),
        acc_before_std_seeds=_std([spread.mean for spread in before]),
        acc_after=_mean([spread.mean for spread in after]),
        acc_after_std_seeds=_std([spread.mean for spread in after]),
        acc_after_std_clients=_mean([spread.std for spread in after]),
        acc_after_min=_mean([_worst(spread, metric) for spread in after]),
        acc_after_p10=_mean([spread.p10 for spread in after]),
        acc_after_p90=_mean([spread.p90 for spread in after]),
        acc_after_worst_decile=_mean([spread.worst_decile for spread in after]),
        acc_after_jain=_mean([spread.jain for spread in after]),
        global_acc=_mean([run.last_global(view) for run in runs]),
        gain_over_local=_gain(group, local, view),
        gain_over_fedavg_ft=_gain(group, fedavg, view),
        bytes_up_per_round=_mean([_per_round(run, "communication/bytes_up") for run in runs]),
        bytes_down_per_round=_mean([_per_round(run, "communication/bytes_down") for run in runs]),
        rounds=_mean([float(len(run.rounds)) for run in runs]),
        seconds_training=_mean([float(np.sum(run.seconds)) for run in runs]),
        seconds_wall=_mean([run.wall_seconds for run in runs]),
        seconds_simulated=_mean([run.last("time/simulated") for run in runs]),
        metric=metric,
    )


def _worst(spread: Spread, metric: MainMetric) -> float:
    return spread.min if metric.mode == "max" else spread.max


def _gain(group: Group, other: Group | None, view: str) -> float:
    """Return the mean difference over the seeds that both have; nan against itself."""
    if other is None or other.variant == group.variant:
        return math.nan
    return _mean(
        [
            Spread.of(group.runs[seed].values("acc_after", view)).mean
            - Spread.of(other.runs[seed].values("acc_after", view)).mean
            for seed in group.runs.keys() & other.runs.keys()
        ]
    )


def _per_round(run: Run, column: str) -> float:
    values = run.metrics.get(column, np.empty(0))
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else math.nan


def _mean(values: Sequence[float]) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the mean of an empty slice is nan
        return float(np.nanmean(values)) if len(values) else math.nan


def _std(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return float(np.std(known, ddof=1)) if len(known) > 1 else math.nan
