"""FedBABU against FedAvg on Fashion-MNIST: 100 clients, two shards each, the same cohorts per seed.

Runs the shipped recipes once per algorithm and seed (runs that are already there are not repeated)
and prints a Markdown table of accuracies over clients and seeds.

    python benchmarks/fashion_mnist_study.py --out runs/fashion_mnist --rounds 40 --seeds 0 1 2
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path
from statistics import mean, pstdev

from fedlightning.reporting import Spread, read_clients_csv

ALGORITHMS = {"fedavg": "FedAvg + fine-tuning", "fedbabu": "FedBABU"}


def run(algorithm: str, seed: int, rounds: int, folder: Path) -> None:
    """Train one algorithm with one seed, unless its clients.csv is there."""
    if list(folder.rglob("clients.csv")):
        return
    started = time.monotonic()
    subprocess.run(
        [
            sys.executable, "-m", "fedlightning", "fit",
            f"--config=fashion_mnist_{algorithm}.yaml",
            f"--seed_everything={seed}",
            f"--trainer.max_epochs={rounds}",
            f"--trainer.default_root_dir={folder}",
        ],
        check=True,
    )  # fmt: skip
    (folder / "seconds.txt").write_text(f"{time.monotonic() - started:.0f}\n")


def table(out: Path, seeds: list[int]) -> str:
    """Return mean and spread over clients, averaged over seeds, and the spread over seeds."""
    lines = [
        "| method | initial accuracy | personalized accuracy | worst tenth after | seeds |",
        "|---|---|---|---|---|",
    ]
    for algorithm, name in ALGORITHMS.items():
        runs = [
            read_clients_csv(next((out / f"{algorithm}-{seed}").rglob("clients.csv")))
            for seed in seeds
        ]
        before = [Spread.of(record.acc_before for record in records) for records in runs]
        after = [Spread.of(record.acc_after for record in records) for records in runs]
        lines.append(
            f"| {name} | {_cell(before)} | {_cell(after)} "
            f"| {100 * mean(spread.p10 for spread in after):.1f} | {len(seeds)} |"
        )
    return "\n".join(lines)


def _cell(spreads: list[Spread]) -> str:
    means = [100 * spread.mean for spread in spreads]
    over_clients = 100 * mean(spread.std for spread in spreads)
    return f"{mean(means):.2f} ± {pstdev(means):.2f} over seeds, ± {over_clients:.1f} over clients"


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/fashion_mnist"))
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    for seed in args.seeds:
        for algorithm in ALGORITHMS:
            run(algorithm, seed, args.rounds, args.out / f"{algorithm}-{seed}")
    print(table(args.out, args.seeds))


if __name__ == "__main__":
    main()
