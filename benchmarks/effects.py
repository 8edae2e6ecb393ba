"""Whether a published method does what it is said to do: one experiment per system.

    python benchmarks/effects.py fedres
    python benchmarks/effects.py ids --seeds 5 6 7 8 9

The last line of the output is one JSON object: per-seed numbers of the system and of its
baselines, effect, threshold, and whether all demands hold. The command ends with 0 if they do,
else with 1.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import sys
import time
import warnings
from concurrent.futures import ProcessPoolExecutor

import effects_of
import torch


def main() -> int:
    """Run one system's experiment on some seeds."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("system", choices=effects_of.systems())
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1))
    args = parser.parse_args()
    forks = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(args.jobs, forks) as pool:
        measured = list(pool.map(measure, [args.system] * len(args.seeds), args.seeds))
    demands = effects_of.load(args.system).demands(measured)
    result = effects_of.report(args.system, args.seeds, measured, demands)
    print(json.dumps(result))
    return 0 if result["holds"] else 1


def measure(system: str, seed: int) -> dict[str, float]:
    """Run a system's experiment on a seed, in a process of its own."""
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    start = time.monotonic()
    found: dict[str, float] = effects_of.load(system).measure(seed)
    numbers = ", ".join(f"{name} {value:.4f}" for name, value in found.items())
    print(f"seed {seed}: {numbers} ({time.monotonic() - start:.0f} s)", file=sys.stderr)
    return found


if __name__ == "__main__":
    sys.exit(main())
