"""Accuracy against epsilon: what noise on the shared part costs FedBABU, FedAvg and FedPer.

    python benchmarks/privacy_tradeoff.py --seeds 0 1 2 --out tradeoff.jsonl
    python benchmarks/privacy_tradeoff.py --table tradeoff.jsonl

Fashion-MNIST (Debian's package `dataset-fashion-mnist`), 1,000 clients with two shards of thirty
images, an MLP with 32 hidden units, Poisson sampling of a hundred clients a round. The clipping
norm follows the median, for each algorithm by itself. What is noised is what is shared: the body
under FedBABU and FedPer, all of it under FedAvg. The head is fine-tuned afterwards, which costs no
privacy: it stays with the client. Runs that are in the file are not made again.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import sys
import tempfile
import time
import warnings
from pathlib import Path
from statistics import mean, stdev
from typing import Any

CLIENTS, Q, DELTA = 1000, 0.1, 1e-4
ALGORITHMS = ("FedBABU", "FedAvg", "FedPer")


def main() -> None:
    """Make the runs that are not in the file yet, or print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--noise", type=float, nargs="+", default=[0.0, 0.6, 1.0, 2.0])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--out", type=Path, default=Path("privacy_tradeoff.jsonl"))
    parser.add_argument("--table", type=Path)
    args = parser.parse_args()
    if args.table:
        rows = [json.loads(line) for line in args.table.read_text().splitlines()]
        print(table(rows), paired(rows), sep="\n\n")
        return
    done = args.out.read_text().splitlines() if args.out.exists() else []
    known = {tuple(json.loads(line)[k] for k in ("algorithm", "z", "seed")) for line in done}
    for seed in args.seeds:
        for z in [None, *args.noise]:
            for algorithm in ALGORITHMS:
                if (algorithm, z, seed) not in known:
                    row = run(algorithm, z, seed, args.rounds)
                    with args.out.open("a") as file:
                        file.write(json.dumps(row) + "\n")
                    print(row, flush=True)


def run(algorithm: str, z: float | None, seed: int, rounds: int) -> dict[str, Any]:
    """Return accuracies before and after personalization, and epsilon, of one run."""
    from pytorch_lightning import seed_everything  # sets the level of its own messages

    import fedlightning as fl
    from fedlightning.datamodules import FashionMNIST, Shards
    from fedlightning.models import MLP

    warnings.simplefilter("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    began = time.perf_counter()
    clip = fl.AdaptiveClipping(initial=0.5)
    privacy = None if z is None else fl.ClientDP(noise_multiplier=z, delta=DELTA, max_norm=clip)
    federation = fl.Federation(
        algorithm=getattr(fl, algorithm)(weights="uniform"), cohort_size=None,
        sampler=fl.PoissonSampler(Q), privacy=privacy, seed=seed,
    )  # fmt: skip
    personalization = fl.PersonalizationCallback(part="head", epochs=5, lr=0.1)
    with tempfile.TemporaryDirectory() as folder:
        trainer = fl.FederatedTrainer(
            federation=federation, max_epochs=rounds, callbacks=[personalization],
            check_val_every_n_epoch=rounds, enable_progress_bar=False, enable_model_summary=False,
            enable_checkpointing=False, logger=False, default_root_dir=folder,
            num_sanity_val_steps=0,
        )  # fmt: skip
        seed_everything(seed, verbose=False)
        module = MLP(in_features=784, hidden=[32], num_classes=10, lr=0.1)
        data = FashionMNIST(
            num_clients=CLIENTS, batch_size=20, partition=Shards(2), seed=seed, eval_clients=300
        )
        trainer.fit(module, datamodule=data)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    return {
        "algorithm": algorithm, "z": z, "seed": seed, "rounds": rounds,
        "epsilon": metrics.get("privacy/epsilon", math.inf),
        "max_norm": metrics.get("privacy/max_norm"),
        "before": metrics["initial/acc"], "after": metrics["personalized/acc"],
        "seconds": round(time.perf_counter() - began, 1),
    }  # fmt: skip


def table(rows: list[dict[str, Any]]) -> str:
    """Return the table of the results."""
    levels = sorted({(row["z"] is not None, row["z"] or 0.0) for row in rows})
    lines = [
        "| z | epsilon | " + " | ".join(f"{a}, before | after" for a in ALGORITHMS) + " |",
        "|---|---|" + "---|---|" * len(ALGORITHMS),
    ]
    for private, z in levels:
        of = [r for r in rows if (r["z"] is not None, r["z"] or 0.0) == (private, z)]
        epsilon = max(row["epsilon"] for row in of)
        cells = ["-" if not private else f"{z:g}",
                 "none" if not math.isfinite(epsilon) else f"{epsilon:.2f}"]  # fmt: skip
        for algorithm in ALGORITHMS:
            for key in ("before", "after"):
                values = [100 * row[key] for row in of if row["algorithm"] == algorithm]
                spread = f" ± {stdev(values):.1f}" if len(values) > 1 else ""
                cells.append(f"{mean(values):.1f}{spread}" if values else "")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def paired(rows: list[dict[str, Any]]) -> str:
    """Return by how many points more FedBABU loses than FedAvg under noise, seed by seed.

    A loss is an accuracy without privacy minus the one with it, of the same algorithm and seed.
    Levels and seeds with a run missing are left out.
    """
    of = {(row["algorithm"], row["z"], row["seed"]): row for row in rows}
    lines = ["| z | before, by seed | mean | after, by seed | mean |", "|---|---|---|---|---|"]
    for z in sorted({row["z"] for row in rows if row["z"]}):
        needed = {
            seed: [(a, level, seed) for a in ("FedBABU", "FedAvg") for level in (None, z)]
            for seed in sorted({row["seed"] for row in rows})
        }
        cells = [f"{z:g}"]
        for key in ("before", "after"):
            more = []
            for keys in needed.values():
                if all(each in of for each in keys):
                    babu, noisy_babu, avg, noisy_avg = (100 * of[each][key] for each in keys)
                    more.append((babu - noisy_babu) - (avg - noisy_avg))
            if not more:
                break
            spread = f" ± {stdev(more):.1f}" if len(more) > 1 else ""
            cells += [", ".join(f"{each:.1f}" for each in more), f"{mean(more):.1f}{spread}"]
        else:
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
