"""What fine-tuning gained, client by client, and the numbers that a log gets of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fedlightning.reporting import (
    ClientRecord,
    EpochRecord,
    Spread,
    clients_figure,
    finetuning_figure,
    save_figure,
    write_clients_csv,
    write_finetuning_csv,
)
from fedlightning.storage.run_layout import (
    CLIENTS,
    CLIENTS_FIGURE,
    FINETUNING,
    FINETUNING_FIGURE,
    HELD_OUT_CLIENTS,
    HELD_OUT_FINETUNING,
)

__all__ = ["PersonalResult", "finetuning_curve", "metrics_of", "write_results"]


@dataclass(frozen=True)
class PersonalResult:
    """One client before and after fine-tuning.

    Args:
        record: Accuracy and loss, and how many examples they rest on.
        before: All that the module logs on the client's test data, by short name; what it logs on
            its validation data begins with ``val_``.
        after: The same after fine-tuning.
        nearest_mean_acc: Test accuracy of the nearest class mean in feature space; nan if unknown.
        curve: The same as ``before`` after 0, 1, ... epochs; empty if nobody has asked for it.
    """

    record: ClientRecord
    before: Mapping[str, float] = field(default_factory=dict)
    after: Mapping[str, float] = field(default_factory=dict)
    nearest_mean_acc: float = math.nan
    curve: tuple[Mapping[str, float], ...] = ()

    @classmethod
    def of(
        cls,
        client: int,
        num_train: int,
        num_test: int,
        scores: Sequence[Mapping[str, float]],
        nearest_mean_acc: float = math.nan,
        curve: bool = False,
    ) -> PersonalResult:
        """Return the result of a client that was measured before, after, and perhaps in between.

        Args:
            client: Client id.
            num_train: Examples that it trains on.
            num_test: Examples that it was measured on.
            scores: What was measured, in order of time; empty if nothing was.
            nearest_mean_acc: Accuracy of the nearest class mean.
            curve: Whether the scores are those after 0, 1, ... epochs.
        """
        before, after = (scores[0], scores[-1]) if scores else ({}, {})
        record = ClientRecord(
            client_id=client,
            num_train=num_train,
            num_test=num_test,
            acc_before=before.get("acc", math.nan),
            acc_after=after.get("acc", math.nan),
            loss_before=before.get("loss", math.nan),
            loss_after=after.get("loss", math.nan),
        )
        return cls(record, before, after, nearest_mean_acc, tuple(scores) if curve else ())


def metrics_of(results: Sequence[PersonalResult], prefix: str = "") -> dict[str, float]:
    """Return means over clients, and how their accuracies are spread, under the logged names.

    Args:
        results: The clients.
        prefix: Put before every name.
    """
    metrics: dict[str, float] = {}
    for moment, scores in (
        ("initial", [result.before for result in results]),
        ("personalized", [result.after for result in results]),
    ):
        for name in dict.fromkeys(name for values in scores for name in values):
            spread = Spread.of(values[name] for values in scores if name in values)
            metrics[f"{prefix}{moment}/{name}"] = spread.mean
            if name == "acc":
                for kind in ("std", "min", "p10", "p90", "worst_decile", "jain"):
                    metrics[f"{prefix}{moment}/acc_{kind}"] = getattr(spread, kind)
    nearest = Spread.of(result.nearest_mean_acc for result in results)
    if nearest.count:
        metrics[f"{prefix}initial/acc_nearest_mean"] = nearest.mean
    return metrics


def finetuning_curve(results: Sequence[PersonalResult]) -> list[EpochRecord]:
    """Return accuracy over epochs of fine-tuning, over the clients that have a curve."""
    curves = [result.curve for result in results if result.curve]
    nan = math.nan
    return [
        EpochRecord.of(epoch, [(at.get("acc", nan), at.get("val_acc", nan)) for at in clients])
        for epoch, clients in enumerate(zip(*curves, strict=True))
    ]


def write_results(
    folder: Path, results: Sequence[PersonalResult], held_out: Sequence[PersonalResult] = ()
) -> None:
    """Write tables and figures about clients into a run folder.

    Args:
        folder: The run folder, which exists.
        results: The clients that may train.
        held_out: Those that never do; their tables have names of their own.

    Raises:
        EnvironmentFailure: A file cannot be written.
    """
    curve, other_curve = finetuning_curve(results), finetuning_curve(held_out)
    records = [result.record for result in results]
    write_clients_csv(folder / CLIENTS, records)
    if held_out:
        write_clients_csv(folder / HELD_OUT_CLIENTS, [result.record for result in held_out])
    if any(record.tested for record in records):
        save_figure(clients_figure(records), folder / CLIENTS_FIGURE)
    if curve:
        write_finetuning_csv(folder / FINETUNING, curve)
        save_figure(finetuning_figure(curve, other_curve), folder / FINETUNING_FIGURE)
    if other_curve:
        write_finetuning_csv(folder / HELD_OUT_FINETUNING, other_curve)
