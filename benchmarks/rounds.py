"""Seconds a round beside a hand-written loop that takes the same optimizer steps.

Every variant gets the same tensors, cohorts, initial weights and network (``peers/common.py``), and
runs in turn as a process of its own, one thread a process. The set ``engine`` is this project with
its switches, and a Trainer for every client; ``peers`` is other libraries, each in a virtual
environment that is made from ``peers/NAME.txt`` first.

    python benchmarks/rounds.py engine --workloads W1 W2 --rounds 6 --turns 3
    python benchmarks/rounds.py peers --workloads W1 W2 --rounds 6 --turns 3
"""

from __future__ import annotations

import argparse
import os
import platform
import signal
import subprocess
import sys
from datetime import date
from pathlib import Path
from statistics import median

import numpy as np
import torch
from measuring import Measured, run_measured
from peers.common import NETS
from workloads import BATCH, COHORT, data, federation, module

from fedlightning.core.seeding import Key

HERE = Path(__file__).resolve().parent
BENCH = HERE.parent / ".bench"
# name: adapter, requirements and environment (None is this one), settings
Variants = dict[str, tuple[str, str | None, list[str]]]
PLAIN = ["channels_last=false", "fused=false", "keep_freed_memory=false"]
ENGINE: Variants = {
    "raw loop": ("raw", None, []),
    "raw loop, ReLU before pooling": ("raw", None, ["published=1"]),
    "raw loop, channels last and fused SGD": ("raw", None, ["fast=1"]),
    "raw loop, freed memory kept": ("raw", None, ["kept=1"]),
    "raw loop, all three": ("raw", None, ["fast=1", "kept=1"]),
    "fedlightning, no switch": ("ours", None, PLAIN),
    "fedlightning, fused SGD": ("ours", None, ["channels_last=false"]),
    "fedlightning, memory given back": ("ours", None, ["keep_freed_memory=false"]),
    "fedlightning": ("ours", None, []),
    "fedlightning, 5 clients a kernel": ("ours", None, ["clients_per_kernel=5"]),
    "fedlightning, bf16-mixed": ("ours", None, ['precision="bf16-mixed"']),
    "fedlightning, no switch, 2 workers": ("ours", None, [*PLAIN, "devices=2"]),
    "fedlightning, 2 workers": ("ours", None, ["devices=2"]),
    "fedlightning, bf16-mixed, 2 workers": ("ours", None, ['precision="bf16-mixed"', "devices=2"]),
    "fedlightning, 5 a kernel, 2 workers": ("ours", None, ["clients_per_kernel=5", "devices=2"]),
    "Trainer per client": ("trainer_per_client", None, []),
}
PEERS: Variants = {
    "raw loop": ("raw", None, []),
    "fedlightning": ("ours", None, []),
    "fedlightning, 2 workers": ("ours", None, ["devices=2"]),
    "fluke-fl": ("fluke", "fluke", []),
    "pfl": ("pfl_research", "pfl_research", []),
    "flwr[simulation]": ("flower", "flower", []),
    "flwr[simulation], 2 workers": ("flower", "flower", ["devices=2"]),
}
SETS = {"engine": ENGINE, "peers": PEERS}


def export(folder: Path, rounds: int, examples: int) -> None:
    """Write what everybody is given: tensors by client, cohorts, initial weights."""
    folder.mkdir(parents=True, exist_ok=True)
    clients, arrays = data(), {}
    for split in ("train", "test"):
        pairs = [
            [
                _some(torch.cat(p), examples)
                for p in zip(*clients.batches(client, split), strict=True)
            ]
            for client in range(clients.num_clients)
        ]
        arrays[f"{split}_sizes"] = np.array([len(y) for _, y in pairs])
        arrays[f"{split}_x"] = torch.cat([x for x, _ in pairs]).numpy()
        arrays[f"{split}_y"] = torch.cat([y for _, y in pairs]).numpy()
    arrays["cohorts"] = np.array(
        [
            federation().cohort(Key(0, "cohort", round=index), clients.num_clients, COHORT)
            for index in range(rounds)
        ]
    )
    probe = torch.from_numpy(arrays["test_x"][:BATCH])
    for workload, net in NETS.items():
        ours, theirs = module(workload), net()
        theirs.load_state_dict(ours.state_dict())
        with torch.no_grad():
            torch.testing.assert_close(ours(probe), theirs(probe))
        weights = {key: value.numpy() for key, value in ours.state_dict().items()}
        np.savez(folder / f"{workload}.npz", **weights)
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)


def _some(part: torch.Tensor, number: int) -> torch.Tensor:
    """Return that many entries, evenly spaced: a client's shards lie one after the other."""
    return part[:: max(len(part) // number, 1)][:number] if number else part


def python(environment: str | None) -> Path:
    """Return the interpreter of an environment."""
    if environment is None:
        return Path(sys.executable)
    return BENCH / "venvs" / environment / "bin" / "python"


def set_up(environment: str) -> str:
    """Make an environment unless its requirements are installed; return what went wrong, if any."""
    pins, folder = HERE / "peers" / f"{environment}.txt", BENCH / "venvs" / environment
    done = folder / "installed.txt"
    if done.exists() and done.read_text() == pins.read_text():
        return ""
    print(f"installing {pins.name} into {folder}", file=sys.stderr)
    for command in (
        [sys.executable, "-m", "venv", "--clear", str(folder)],
        [str(python(environment)), "-m", "pip", "install", "--quiet", "--requirement", str(pins)],
    ):
        ran = subprocess.run(command, capture_output=True, text=True)
        if ran.returncode:
            return f"cannot be installed: {_last_line(ran.stderr)}"
    done.write_text(pins.read_text())
    return ""


def measure(
    variant: tuple[str, str | None, list[str]], workload: str, rounds: int, timeout: float
) -> Measured:
    """Run one variant."""
    adapter, environment, settings = variant
    env = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(HERE), *([] if environment else [str(HERE.parent)])]),
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "FLWR_HOME": str(BENCH / "flwr"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    command = [python(environment), "-m", f"peers.{adapter}", BENCH / "work", workload, rounds]
    folder = BENCH / "runs"
    folder.mkdir(exist_ok=True)
    return run_measured([*map(str, command), *settings], env, folder, timeout)


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no message"])[-1]


def table(
    workload: str, names: list[str], turns: list[dict[str, Measured]], refused: dict[str, str]
) -> str:
    """Return one Markdown table: a row for every variant, its ratios to raw of the same turn."""
    lines = [
        f"| {workload} | wall s a round | x raw | CPU s a round | x raw | peak MiB | start-up s "
        "| optimizer steps | accuracy % | deviations |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name in names:
        if name in refused:
            lines.append(f"| {name} | | | | | | | | | {refused[name]} |")
        elif all(name in turn for turn in turns):
            pairs = [(turn[name], turn["raw loop"]) for turn in turns]
            lines.append(f"| {name} | {' | '.join(_cells(pairs))} |")
    return "\n".join(lines)


def _cells(pairs: list[tuple[Measured, Measured]]) -> list[str]:
    """Return a row's cells from the turns of a variant, each with raw's."""
    ours = [run for run, _ in pairs]
    cells = []
    for rounds in ("round_walls", "round_cpus"):
        # the first round pays for what is made once
        seconds = [[median(getattr(run, rounds)[1:]) for run in pair] for pair in pairs]
        ratios = [mine / raw for mine, raw in seconds]
        cells.append(f"{median(mine for mine, _ in seconds):.2f}")
        cells.append(f"{median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})")
    steps, expected = ours[0].result["steps"], pairs[0][1].result["steps"]
    return [
        *cells,
        f"{median(run.peak_memory_mb for run in ours):.0f}",
        f"{median(run.start_up for run in ours):.1f}",
        str(steps) if steps == expected else f"{steps} ({steps - expected:+d}!)",
        f"{100 * median(run.result['accuracy'] for run in ours):.1f}",
        "; ".join(ours[0].result["deviations"]),
    ]


def main() -> None:
    """Make the environments, measure in turn, print and save the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("set", choices=list(SETS))
    parser.add_argument("--workloads", nargs="+", default=["W1", "W2"], choices=list(NETS))
    parser.add_argument("--rounds", type=int, default=6, help="at least 2; the first isn't counted")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--examples", type=int, default=0, help="of a client; 0: all of them")
    parser.add_argument(
        "--only", nargs="+", help="variants to run beside the raw loop; default: all"
    )
    parser.add_argument("--timeout", type=float, default=1800, help="seconds for one run")
    parser.add_argument("--out", type=Path, help="default: .bench/SET.md")
    args = parser.parse_args()
    variants = SETS[args.set]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended
    names = [name for name in variants if name in {"raw loop", *(args.only or variants)}]
    export(BENCH / "work", args.rounds, args.examples)
    refused = {
        name: why
        for name in names
        if (environment := variants[name][1]) is not None and (why := set_up(environment))
    }
    title = (
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, torch "
        f"{torch.__version__}, one thread a process; {args.rounds} rounds, {args.turns} turns, "
        f"{args.examples or 'all'} examples a client; "
        f"{date.today()}"
    )
    text = f"{title}\n"
    print(text)
    for workload in args.workloads:
        turns: list[dict[str, Measured]] = []
        for _ in range(args.turns):
            turns.append({})
            for name in names:
                if name in refused:
                    continue
                measured = measure(variants[name], workload, args.rounds, args.timeout)
                if measured.returncode or not measured.result:
                    print(measured.error, file=sys.stderr)
                    refused[name] = f"failed: {_last_line(measured.error)}"
                    continue
                turns[-1][name] = measured
                print(f"{workload} {name}: {measured.round_walls}", file=sys.stderr)
        text += f"\n{table(workload, names, turns, refused)}\n"
    print(text.removeprefix(title).strip())
    (args.out or BENCH / f"{args.set}.md").write_text(text)


if __name__ == "__main__":
    main()
