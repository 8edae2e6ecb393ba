"""The same bits as an older commit: what a rebuilt inside must leave as it was.

Runs the same configs with the package of an older commit and with the one beside this script, each
run as a command of its own, and compares what they leave: the weights in ``checkpoints/last.ckpt``
bit for bit, ``clients.csv`` byte for byte, and of ``metrics.csv`` the columns that both sides have.
Some cases stop half-way and go on from the checkpoint; in those that are handed over, the older
package wrote it, and the bits are those of an older run that never stopped. The old and the new run
of a case go side by side; ``--at-once 1`` has them take turns, for seconds that mean something.

    python benchmarks/old_against_new.py
    python benchmarks/old_against_new.py --old f801f88 --case fedavg fedper-2-workers
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve().parent.parent
HALF, ROUNDS = 2, 4
TIMEOUT = 300.0  # seconds for one command
# which package trains until which round; several legs: each goes on from the one before
Legs = tuple[tuple[str, int], ...]
WHOLE: dict[str, Legs] = {"old": (("old", ROUNDS),), "new": (("new", ROUNDS),)}
RESUMED: dict[str, Legs] = {tree: ((tree, HALF), (tree, ROUNDS)) for tree in ("old", "new")}
HANDED_OVER: dict[str, Legs] = {"old": WHOLE["old"], "new": (("old", HALF), ("new", ROUNDS))}


@dataclass(frozen=True)
class Case:
    """One comparison.

    Args:
        config: Name of the config, one of `CONFIGS`.
        legs: How the old and the new side come to their last round.
    """

    config: str
    legs: dict[str, Legs] = field(default_factory=lambda: WHOLE)


def config(
    algorithm: Any = "FedBABU",
    *,
    epochs: int = 2,
    momentum: float = 0.9,
    devices: int = 1,
    **federation: Any,
) -> dict[str, Any]:
    """Return a config of ten clients with two digits each, four of them a round.

    Args:
        algorithm: What ``federation.algorithm`` says.
        epochs: Epochs of personalization; 0 where clients have models of their own.
        momentum: Of local training.
        devices: Number of workers.
        **federation: More of the federation's settings.
    """
    return {
        "seed_everything": 0,
        "model": {
            "class_path": "MLP",
            # a constant rate: the rounds of a run that is stopped half-way are those of a whole one
            "init_args": {
                "in_features": 64, "hidden": [32], "num_classes": 10, "lr": 0.1,
                "momentum": momentum, "lr_milestones": [],
            },
        },
        "data": {
            "class_path": "Digits",
            "init_args": {
                "num_clients": 10, "batch_size": 10, "val_fraction": 0.2,
                "partition": {"class_path": "Shards", "init_args": {"per_client": 2}},
            },
        },
        "federation": {"algorithm": algorithm, "cohort_size": 4, "local_epochs": 2, **federation},
        "trainer": {
            "accelerator": "cpu",
            "devices": devices,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "callbacks": [
                {
                    "class_path": "PersonalizationCallback",
                    "init_args": {"part": "head", "epochs": epochs, "every_n_rounds": HALF},
                }
            ],
        },
    }  # fmt: skip


def _class(name: str, **arguments: Any) -> dict[str, Any]:
    return {"class_path": name, "init_args": arguments}


_SCAFFOLD_FEDADAM = _class("Composite", algorithms=["SCAFFOLD", _class("FedAdam", lr=0.03)])
_TOPK = _class("TopK", fraction=0.05)
CONFIGS = {
    "fedbabu": config(),
    "fedavg": config("FedAvg"),
    "scaffold-fedadam": config(_SCAFFOLD_FEDADAM, momentum=0.0),
    "fedper": config("FedPer", epochs=0),
    "ditto": config("Ditto", epochs=0),
    "apfl": config("APFL", epochs=0),
    "fedrod": config("FedRoD", epochs=0),
    "fedbabu-topk": config(compression=_TOPK),
    "fedbabu-2-workers": config(devices=2),
    "fedper-2-workers": config("FedPer", epochs=0, devices=2),
    "fedper-topk": config("FedPer", epochs=0, compression=_TOPK),
}
CASES = {
    **{name: Case(name) for name in CONFIGS if name != "fedper-topk"},
    # heads and residuals of the clients, then the server's moments and control variates
    "resumed": Case("fedper-topk", RESUMED),
    "fedper-topk-handed-over": Case("fedper-topk", HANDED_OVER),
    "scaffold-fedadam-handed-over": Case("scaffold-fedadam", HANDED_OVER),
}


class Failed(Exception):
    """A command that ended with an error, in words."""


class Runs:
    """Runs of both packages; what two cases have in common is run once.

    Args:
        trees: The folders that have the old and the new package.
        folder: Where runs go.
    """

    def __init__(self, trees: dict[str, Path], folder: Path) -> None:
        self.trees, self.folder = trees, folder
        self._done: dict[tuple[str, Legs], float | Failed] = {}

    def go(self, name: str, legs: Legs) -> tuple[Path, float]:
        """Run a config leg by leg; return the folder of the last one and the seconds of all.

        Raises:
            Failed: If a command ends with an error.
        """
        seconds = 0.0
        for number in range(1, len(legs) + 1):
            key = name, legs[:number]
            if key not in self._done:
                try:
                    self._done[key] = self._leg(*key)
                except Failed as error:
                    self._done[key] = error
            taken = self._done[key]
            if isinstance(taken, Failed):
                raise taken
            seconds += taken
        runs = list((self._root(name, legs) / "runs").glob("*/version_*"))
        if len(runs) != 1:
            raise Failed(f"{legs[-1][0]} left {len(runs)} run folders and not one")
        return runs[0], seconds

    def _root(self, name: str, legs: Legs) -> Path:
        return self.folder / name / "-".join(f"{tree}{rounds}" for tree, rounds in legs)

    def _leg(self, name: str, legs: Legs) -> float:
        """Run the last of these legs in a folder of its own and return its seconds."""
        (tree, rounds), before, root = legs[-1], legs[:-1], self._root(name, legs)
        if before:  # others may go on from there too
            shutil.copytree(self._root(name, before), root)
        root.mkdir(parents=True, exist_ok=True)
        (root / "config.yaml").write_text(json.dumps(CONFIGS[name], indent=2))
        command = [
            sys.executable, "-m", "fedlightning", "fit", "--config=config.yaml",
            "--trainer.default_root_dir=runs", f"--trainer.max_epochs={rounds}",
            *["--ckpt_path=last"] * bool(before),
        ]  # fmt: skip
        env = environment(self.trees[tree])
        started = time.perf_counter()
        try:
            done = subprocess.run(
                command, cwd=root, env=env, timeout=TIMEOUT, capture_output=True, text=True
            )
        except subprocess.TimeoutExpired:
            raise Failed(f"{tree} took longer than {TIMEOUT:.0f} s") from None
        if done.returncode:
            words = done.stderr.strip().splitlines() or ["no message"]
            raise Failed(
                f"{tree} ended with {done.returncode} on the way to round {rounds}: {words[-1]}"
            )
        return time.perf_counter() - started


def environment(tree: Path) -> dict[str, str]:
    """Return this process's environment with a tree's package in front of all others."""
    return {**os.environ, "PYTHONPATH": str(tree), "CUDA_VISIBLE_DEVICES": ""}


@contextmanager
def checkout(commit: str, folder: Path) -> Iterator[Path]:
    """Check a commit out into a folder that isn't there yet, for as long as the context lasts."""
    git = ["git", "-C", str(HERE), "worktree"]
    try:
        added = subprocess.run(
            [*git, "add", "--quiet", "--detach", str(folder), commit],
            capture_output=True, text=True,
        )  # fmt: skip
        if added.returncode:
            raise Failed(f"cannot check out {commit}: {added.stderr.strip()}")
        yield folder
    finally:
        subprocess.run([*git, "remove", "--force", str(folder)], capture_output=True)


def check_tree(tree: Path) -> None:
    """Raise unless a command with this tree's environment takes the package from there."""
    find = "import importlib.util as u; print(u.find_spec('fedlightning').origin)"
    done = subprocess.run(
        [sys.executable, "-c", find],
        env=environment(tree), cwd=tree.parent, check=True, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    origin = Path(done.stdout.strip()).resolve()
    if not origin.is_relative_to(tree.resolve()):
        raise Failed(f"the package of {tree} is not the one that is imported, which is {origin}")


def compare(old: Path, new: Path) -> tuple[list[str], list[str]]:
    """Compare the folders of two runs.

    Returns:
        What differs, and what is worth a word but no difference: columns that one side has alone.
    """
    files = "checkpoints/last.ckpt", "clients.csv", "metrics.csv"
    missing = [
        f"{side} has no {file}"
        for side, run in (("old", old), ("new", new))
        for file in files
        if not (run / file).exists()
    ]
    if missing:
        return missing, []
    what = _weights(*(_read_weights(run / files[0]) for run in (old, new)))
    if (old / "clients.csv").read_bytes() != (new / "clients.csv").read_bytes():
        what.append("clients.csv")
    cells, remarks = _metrics(*((run / "metrics.csv").read_bytes() for run in (old, new)))
    return what + cells, remarks


def _read_weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = torch.load(
        checkpoint, map_location="cpu", weights_only=True
    )["state_dict"]
    return weights


def _weights(old: dict[str, torch.Tensor], new: dict[str, torch.Tensor]) -> list[str]:
    """Say which tensors are not the same bits."""
    differ = [
        key
        for key in dict.fromkeys([*old, *new])
        if key not in old or key not in new or not _same_bits(old[key], new[key])
    ]
    return [f"weights ({_names(differ)})"] if differ else []


def _names(names: list[str], most: int = 4) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _same_bits(old: torch.Tensor, new: torch.Tensor) -> bool:
    """Tell whether type, shape and every bit are the same: -0.0 is not 0.0, a NaN is itself."""
    if (old.dtype, old.shape) != (new.dtype, new.shape):
        return False
    return old.reshape(-1).view(torch.uint8).equal(new.reshape(-1).view(torch.uint8))


def _metrics(old: bytes, new: bytes) -> tuple[list[str], list[str]]:
    """Say which of the columns that both tables have differ, and which one of them has alone."""
    if old == new:
        return [], []
    (old_names, olds), (new_names, news) = _columns(old), _columns(new)
    remarks = [
        f"metrics.csv of {side} alone has {', '.join(alone)}"
        for side, names, others in (("old", old_names, news), ("new", new_names, olds))
        if (alone := [name for name in names if name not in others])
    ]
    differ = [name for name in old_names if name in news and olds[name] != news[name]]
    if not differ and old_names == new_names:
        return ["metrics.csv (the same cells, other bytes)"], remarks
    return ([f"metrics.csv ({_names(differ)})"] if differ else []), remarks


def _columns(table: bytes) -> tuple[list[str], dict[str, list[str]]]:
    names, *rows = csv.reader(io.StringIO(table.decode(), newline=""))
    return names, {name: [row[i] for row in rows] for i, name in enumerate(names)}


def verdict(runs: Runs, case: Case, at_once: int) -> tuple[bool, str]:
    """Run both sides of a case; return whether they are the same, and the line to print."""
    with ThreadPoolExecutor(at_once) as pool:
        going = {
            side: pool.submit(runs.go, case.config, case.legs[side]) for side in ("old", "new")
        }
    errors = [run.exception() for run in going.values()]
    if failed := [str(error) for error in errors if isinstance(error, Failed)]:
        return False, f"DIFFERS: {'; '.join(failed)}"
    (old, before), (new, after) = (run.result() for run in going.values())
    what, remarks = compare(old, new)
    seconds = f"old {before:.1f} s, new {after:.1f} s"
    if len(case.legs["old"]) == len(case.legs["new"]):  # as many starts
        seconds += f", ratio {after / before:.2f}"
    line = f"DIFFERS: {'; '.join(what)}" if what else "same"
    return not what, "; ".join([f"{line} ({seconds})", *remarks])


def main() -> None:
    """Print one line a case, and exit with 1 unless all are the same."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--old", default="f801f88", metavar="COMMIT", help="default: %(default)s")
    parser.add_argument(
        "--case", nargs="+", default=list(CASES), choices=list(CASES), metavar="NAME",
        help=f"default: all of {', '.join(CASES)}",
    )  # fmt: skip
    parser.add_argument(
        "--at-once", type=int, default=2, choices=[1, 2], help="1: old and new take turns"
    )
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the old tree is removed
    alike = []
    try:
        with (
            tempfile.TemporaryDirectory() as folder,
            checkout(args.old, Path(folder, "old")) as tree,
        ):
            trees = {"old": tree, "new": HERE}
            for each in trees.values():
                check_tree(each)
            runs = Runs(trees, Path(folder, "work"))
            for name in args.case:
                same, line = verdict(runs, CASES[name], args.at_once)
                print(f"{name:30}{line}", flush=True)
                alike.append(same)
    except Failed as error:
        sys.exit(f"error: {error}")
    sys.exit(0 if all(alike) else 1)


if __name__ == "__main__":
    main()
