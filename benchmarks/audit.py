"""Audits: what somebody who looks at the result can prove about privacy, beside what is claimed.

    python benchmarks/audit.py canary --runs 1000       # a client with a huge update, in and out
    python benchmarks/audit.py membership --seeds 0 1 2  # who was trained on, from personal heads

`canary` trains the same federation many times with one client and without it. That client moves one
weight by 10^6. From the weight's values a lower bound on epsilon follows, with 95 % confidence; it
must lie below the claim, and above half of it where the noise is small, or the audit is blind.
`membership` tells the training examples of a client from its test examples by their loss under the
client's own model, with plain heads and with private ones: how often a training example has the
smaller loss of a pair, where 0.5 is guessing.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import mean
from typing import Any

import numpy as np
from scipy import stats

CANARY = 0


@dataclass(frozen=True)
class Bounds:
    """Lower bounds on epsilon, each with 95 % confidence.

    Args:
        counted: From counts of right and wrong guesses alone, whatever the noise is. With n runs it
            cannot exceed about log(n / 3).
        fitted: From the two means and deviations, if the noise is normal.
    """

    counted: float
    fitted: float


def lower_bounds(within: Sequence[float], without: Sequence[float], delta: float) -> Bounds:
    """Return what values with and without a client prove about epsilon.

    Args:
        within: Values of a statistic in runs with the client; larger, as a rule.
        without: In runs without it.
        delta: Delta of the claim.
    """
    inside, outside = np.asarray(within), np.asarray(without)
    return Bounds(_counted(inside, outside, delta), _fitted(inside, outside, delta))


def _counted(inside: np.ndarray, outside: np.ndarray, delta: float) -> float:
    """Choose a threshold with one half of the runs, count in the other half."""
    half = len(inside) // 2
    candidates = np.concatenate([inside[:half], outside[:half]])

    def bound(hits: int, misses: int, total: int) -> float:
        least = stats.beta.ppf(0.025, hits, total - hits + 1) if hits else 0.0
        most = stats.beta.ppf(0.975, misses + 1, total - misses) if misses < total else 1.0
        return math.log((least - delta) / most) if least > delta else 0.0

    def at(threshold: float, one: np.ndarray, other: np.ndarray) -> float:
        return bound(int((one > threshold).sum()), int((other > threshold).sum()), len(one))

    best = max(candidates, key=lambda value: at(value, inside[:half], outside[:half]))
    return max(0.0, at(best, inside[half:], outside[half:]))


def _fitted(inside: np.ndarray, outside: np.ndarray, delta: float) -> float:
    """Return epsilon of the lower bound on the distance of two normal distributions."""
    import dp_accounting as dp

    n = len(inside)
    deviation = math.sqrt((inside.var(ddof=1) + outside.var(ddof=1)) / 2)
    distance = (inside.mean() - outside.mean()) / deviation
    error = math.sqrt(2 / n + distance**2 / (4 * n))
    least = distance - stats.norm.ppf(0.95) * error
    return float(dp.get_epsilon_gaussian(1 / least, delta)) if least > 0 else 0.0


def canary(args: argparse.Namespace) -> int:
    """Audit a federation; exit 1 if more is proved than claimed, or too little is seen."""
    from fedlightning.privacy import Cohorts, Release, epsilon_of

    population = Cohorts("poisson", 6.0, 6, q=1.0)
    claimed = epsilon_of([Release(args.noise, 1)], population, args.delta)
    values: dict[bool, list[float]] = {True: [], False: []}
    for seed in range(args.runs):
        for there in values:
            values[there].append(_weight(seed, there, args))
    bounds = lower_bounds(values[True], values[False], args.delta)
    holds = max(bounds.counted, bounds.fitted) <= claimed and bounds.fitted > claimed / 2
    print(json.dumps({"claimed": claimed, **asdict(bounds), "runs": args.runs, "holds": holds}))
    return 0 if holds else 1


def _weight(seed: int, there: bool, args: argparse.Namespace) -> float:
    """Return the weight that the canary moves, after a round with or without it."""
    import pytorch_lightning as pl

    import fedlightning as fl
    from fedlightning.datamodules import Digits
    from fedlightning.models import MLP

    class Shouts(pl.Callback):
        def on_client_end(self, trainer: Any, module: Any, update: Any) -> None:
            if update.client == CANARY:
                update.state["body.1.bias"][0] += 1e6

    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False,
             "enable_checkpointing": False, "num_sanity_val_steps": 0}  # fmt: skip
    federation = fl.Federation(
        cohort_size=None, sampler=fl.PoissonSampler(1.0), seed=seed,
        leave_out=[] if there else [CANARY],
        privacy=fl.ClientDP(noise_multiplier=args.noise, delta=args.delta, max_norm=0.5),
    )  # fmt: skip
    pl.seed_everything(0, verbose=False)
    module = MLP(in_features=64, hidden=[8], num_classes=10, lr=0.1)
    before = float(module.body[1].bias[0])
    trainer = fl.FederatedTrainer(
        federation=federation, max_epochs=1, callbacks=[Shouts()], limit_train_batches=1,
        limit_val_batches=0, **quiet,
    )  # fmt: skip
    trainer.fit(module, datamodule=Digits(num_clients=6, batch_size=50, seed=0))
    return float(module.body[1].bias[0]) - before


def membership(args: argparse.Namespace) -> int:
    """Print how often training examples are told from others, with and without privacy."""
    import fedlightning as fl

    heads: dict[str, Any] = {
        "plain": None,
        **{f"private, z = {z:g}": fl.PrivateHead(z, 1.0, 10, args.epochs, 0.5, 1e-3)
           for z in args.noise},
    }  # fmt: skip
    print("| heads | epsilon of an example | told apart | test accuracy |")
    print("|---|---|---|---|")
    for name, head in heads.items():
        found = [_told_apart(head, seed, args) for seed in args.seeds]
        fewest = min(n for _, _, n in found)
        epsilon = "none" if head is None else f"{head.epsilon(fewest, head.steps(fewest)):.1f}"
        print(
            f"| {name} | {epsilon} | {mean(a for a, _, _ in found):.3f} "
            f"| {100 * mean(acc for _, acc, _ in found):.1f} % |",
            flush=True,
        )
    return 0


def _told_apart(head: Any, seed: int, args: argparse.Namespace) -> tuple[float, float, int]:
    """Return the mean over clients of both numbers, and the fewest examples of a client."""
    import pytorch_lightning as pl
    import torch
    from torch.nn import functional as F

    import fedlightning as fl
    from fedlightning.datamodules import Digits, Dirichlet
    from fedlightning.models import MLP

    scores: list[tuple[float, float]] = []

    class Attack(pl.Callback):
        """Looks at every fine-tuned model, as somebody who has it does."""

        def on_client_personalized(self, module: Any, data: Any, client: int) -> None:
            losses, right = {}, 0.0
            for split in ("train", "test"):
                batches = list(data.batches(client, split))
                x, y = (torch.cat([batch[at] for batch in batches]) for at in (0, 1))
                with torch.no_grad():
                    logits = module(x)
                losses[split] = F.cross_entropy(logits, y, reduction="none").numpy()
                right = float((logits.argmax(1) == y).double().mean())
            wins = stats.mannwhitneyu(losses["test"], losses["train"]).statistic
            scores.append((float(wins / len(losses["test"]) / len(losses["train"])), right))

    attack = Attack()
    algorithm = fl.FedBABU() if head is None else fl.FedBABU() + fl.Algorithm(local=[head])
    epochs = args.epochs if head is None else 0
    tuning = fl.PersonalizationCallback(part="head", epochs=epochs, lr=0.5)
    pl.seed_everything(seed, verbose=False)
    module = MLP(in_features=64, hidden=[256], num_classes=10, lr=0.1)
    data = Digits(num_clients=30, batch_size=10, partition=Dirichlet(1.0), seed=seed)
    trainer = fl.FederatedTrainer(
        federation=fl.Federation(algorithm, cohort_size=10, local_epochs=2, seed=seed),
        max_epochs=10, callbacks=[tuning], logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        check_val_every_n_epoch=10,
    )  # fmt: skip
    from fedlightning.personalization.personalizer import Personalizer

    measured = Personalizer.client

    def and_attacked(self: Any, client: int) -> Any:
        result = measured(self, client)
        module.eval()
        attack.on_client_personalized(module, data, client)
        return result

    Personalizer.client = and_attacked  # type: ignore[method-assign]
    try:
        trainer.fit(module, datamodule=data)
    finally:
        Personalizer.client = measured  # type: ignore[method-assign]
    fewest = min(data.num_examples(client) for client in range(30))
    return mean(a for a, _ in scores), mean(acc for _, acc in scores), fewest


def quiet() -> None:
    """Say nothing of every trainer that is made."""
    import pytorch_lightning  # noqa: F401  # it sets the level of its own messages

    warnings.simplefilter("ignore")
    for name in ("pytorch_lightning", "pytorch_lightning.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)


def main() -> int:
    """Run one audit."""
    quiet()
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("canary")
    one.add_argument("--runs", type=int, default=1000)
    one.add_argument("--noise", type=float, default=0.3)
    one.add_argument("--delta", type=float, default=1e-5)
    one.set_defaults(run=canary)
    two = commands.add_parser("membership")
    two.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    two.add_argument("--epochs", type=int, default=20)
    two.add_argument("--noise", type=float, nargs="+", default=[1.0, 4.0])
    two.set_defaults(run=membership)
    args = parser.parse_args()
    return int(args.run(args))


if __name__ == "__main__":
    sys.exit(main())
