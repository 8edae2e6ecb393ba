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
import sys
import time
import warnings

import effects_of
import torch


def main() -> int:
    """Run one system's experiment on some seeds."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("system", choices=effects_of.systems())
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    args = parser.parse_args()
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    experiment, measured = effects_of.load(args.system), []
    for seed in args.seeds:
        start = time.monotonic()
        measured.append(experiment.measure(seed))
        numbers = ", ".join(f"{name} {value:.4f}" for name, value in measured[-1].items())
        print(f"seed {seed}: {numbers} ({time.monotonic() - start:.0f} s)", file=sys.stderr)
    result = effects_of.report(args.system, args.seeds, measured, experiment.demands(measured))
    print(json.dumps(result))
    return 0 if result["holds"] else 1


if __name__ == "__main__":
    sys.exit(main())
