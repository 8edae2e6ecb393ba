"""Seconds until there is something to see: one round of the quickstart against its bare imports.

The command runs to its end (parsing, data, one round of five clients, evaluation), so the time to
the first client's first step is less.

    python benchmarks/start_up.py --turns 5
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
from datetime import date
from statistics import median

from measuring import Measured, run_measured

BARE = [sys.executable, "-c", "import torch, torchvision, pytorch_lightning, torchmetrics"]
ROUND = [
    sys.executable, "-m", "fedlightning", "fit", "--config=quickstart.yaml",
    "--trainer.max_epochs=1", "--trainer.callbacks=null", "--trainer.logger=false",
    "--trainer.enable_checkpointing=false",
]  # fmt: skip


def main() -> None:
    """Run both in turn and print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=5)
    args = parser.parse_args()
    bare: list[Measured] = []
    rounds: list[Measured] = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(args.turns):
            for command, runs in ((BARE, bare), (ROUND, rounds)):
                runs.append(run_measured(command, cwd=folder))
                if runs[-1].returncode:
                    sys.exit(runs[-1].error)
    print(f"{platform.machine()}, Python {platform.python_version()}, {date.today()}\n")
    print("| | wall s | CPU s |\n|---|---|---|")
    for name, runs in (("bare imports", bare), ("quickstart, one round", rounds)):
        wall, cpu = (median(getattr(run, what) for run in runs) for what in ("wall", "cpu"))
        print(f"| {name} | {wall:.1f} | {cpu:.1f} |")
    ratios = [
        median(getattr(r, what) / getattr(b, what) for r, b in zip(rounds, bare, strict=True))
        for what in ("wall", "cpu")
    ]
    print(f"| ratio | {ratios[0]:.2f} | {ratios[1]:.2f} |")


if __name__ == "__main__":
    main()
