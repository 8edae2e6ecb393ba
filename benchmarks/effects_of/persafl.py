"""PersA-FL with stragglers: how much sooner clients' own models reach .90 than with rounds.

Scikit-learn's digits, 10 clients with 3 classes each; updates of 3 clients take ten times as long
as those of the others. A perceptron 64-32-10, 10 local steps of 0.05 on batches of 30. Synchronous
rounds of all clients (beta 1) against every arrival merged by itself (beta 1/10). Options A, whose
clients predict after one step of 0.05 from the global model, B and C. ``ours`` is the ratio of
simulated times for B.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
from effects_of import Demand
from effects_of._runs import fit, seeded

from fedlightning import Algorithm, Buffered, PersAFL, PersonalizationCallback, Synchronous
from fedlightning.algorithms import OneStep
from fedlightning.datamodules import Classes, Digits
from fedlightning.models import MLP

CLIENTS, SLOW, TARGET, HORIZON = 10, 3, 0.90, 200.0
FAST_SECONDS, SLOW_SECONDS = 1.0, 10.0
ALPHA = 0.05
OPTIONS = {
    "A": PersAFL("A") + Algorithm(local=[OneStep(ALPHA)]),
    "B": PersAFL("B", alpha=ALPHA),
    "C": PersAFL("C", strength=15.0),
}


class UntilTarget(PersonalizationCallback):
    """Personalises at whole simulated seconds; stops the run at the target."""

    def __init__(self, every: int) -> None:
        super().__init__(epochs=0, part="full", nearest_mean=False, every_n_rounds=every)
        self.time = math.inf
        self.stale: list[int] = []
        self.accuracy: dict[str, float] = {}

    def on_aggregate_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take down how stale updates are."""
        self.stale += [trainer.current_epoch - job.version for job in trainer.fit_loop.jobs]

    def run(self, trainer: pl.Trainer) -> None:
        """Measure, and stop if the target is reached."""
        super().run(trainer)
        self.accuracy = {
            each.view.name: sum(r.acc_after for r in each.records) / len(each.records)
            for each in self.views
        }
        now = max(job.time for job in trainer.fit_loop.jobs)
        if self.accuracy[""] >= TARGET:
            self.time = min(self.time, now)
        trainer.should_stop = self.time <= now or now >= HORIZON


def _run(seed: int, algorithm: Algorithm, schedule: Any, every: int) -> UntilTarget:
    data = Digits(
        num_clients=CLIENTS, partition=Classes(3), batch_size=30, test_fraction=0.3, seed=seed
    )
    watching = UntilTarget(every)
    module = seeded(seed, MLP, in_features=64, hidden=[32], lr=0.05, momentum=0.0,
                    lr_milestones=())  # fmt: skip
    fit(
        module, data, algorithm, 10_000, seed, callbacks=[watching],
        federation={"schedule": schedule, "local_steps": 10},
    )  # fmt: skip
    return watching


def measure(seed: int) -> dict[str, float]:
    """Return simulated seconds to the target, their ratio, and slow and fast clients' accuracy."""
    found: dict[str, float] = {}
    delays = [FAST_SECONDS] * (CLIENTS - SLOW) + [SLOW_SECONDS] * SLOW
    arrivals = CLIENTS - SLOW  # in a second, but for those of slow clients
    for option, algorithm in OPTIONS.items():
        rounds = _run(seed, algorithm, Synchronous(delays=delays), 1)
        alone = _run(seed, algorithm, Buffered(1, delays), arrivals)
        found[f"{option}: seconds, rounds"] = min(rounds.time, HORIZON)
        found[f"{option}: seconds"] = alone.time
        found[f"{option}: ratio"] = min(rounds.time, HORIZON) / alone.time
        for name, run in (("rounds", rounds), ("arrivals", alone)):
            for speed in ("slow", "fast"):
                found[f"{option}: {speed} clients, {name}"] = run.accuracy[speed]
        found[f"{option}: staleness, mean"] = sum(alone.stale) / len(alone.stale)
        found[f"{option}: staleness, maximum"] = max(alone.stale)
    return {"ours": found.pop("B: ratio"), **found}


def demands(measured: Sequence[dict[str, float]]) -> list[Demand]:
    """Demand half the time at every seed, for every option."""
    names = ("ours", "A: ratio", "C: ratio")
    return [
        Demand(f"seconds of rounds / of arrivals, worst seed, option {option}",
               min(one[name] for one in measured), 2.0)
        for option, name in zip("BAC", names, strict=True)
    ]  # fmt: skip
