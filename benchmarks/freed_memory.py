"""Which of glibc's settings keep freed memory, and what that costs: page faults, CPU, memory.

A training step allocates its activations and frees them again, and by default the kernel maps,
zeroes and unmaps their pages every time (``fedlightning/engine/freed_memory.py``). Each row is one
workload with one combination of ``M_MMAP_THRESHOLD``, ``M_TRIM_THRESHOLD`` and ``M_TOP_PAD`` in
MiB, in a process of its own: 0 leaves a setting to glibc, and "none" is a run without any of them.

    python benchmarks/freed_memory.py
    python benchmarks/freed_memory.py --workloads W1 wide --settings none 32/2047/0 1024/2047/0
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import resource
import subprocess
import sys
import time
import warnings
from datetime import date
from typing import Any

SETTINGS = ["none", "32/64/0", "32/2047/0", "1024/64/0", "1024/2047/0", "1024/2047/64"]
OF_MALLOC_H = (-3, -1, -2)  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, M_TOP_PAD
WORKLOADS = {
    "W1": "two rounds of 4convNet",
    "W2": "two rounds of LeNet",
    "W3": "ten clients' heads of 4convNet are fine-tuned, the body run in every step",
    "W4": "ten rounds of 50 clients with ten examples, a perceptron",
    "wide": "six steps whose activations have 34 MB: 64 channels of 32x32, batches of 128",
    "large": "six steps of a perceptron with 20 million parameters",
}


def train(workload: str, keep: bool) -> None:
    """Run one workload."""
    import torch
    from torch import nn
    from workloads import QUIET, data, federation, module

    from fedlightning import (
        FedAvg,
        FederatedModule,
        FederatedTrainer,
        Federation,
        PersonalizationCallback,
    )
    from fedlightning.datamodules import ClientDatasets, GeneratedClients

    torch.set_num_threads(1)
    if workload in ("W1", "W2"):
        FederatedTrainer(
            federation=federation(keep_freed_memory=keep), max_epochs=2, limit_val_batches=0,
            **QUIET,
        ).fit(module(workload), data())  # fmt: skip
        return
    if workload == "W3":
        clients, model = data(), module("W3")
        callback = PersonalizationCallback(epochs=5, lr=0.01, features_once=False)
        trainer = FederatedTrainer(
            federation=federation(keep_freed_memory=keep), limit_val_batches=1, **QUIET
        )
        trainer.validate(model, datamodule=clients, verbose=False)
        with callback.personalizer(trainer).at_work() as personalizer:
            for client in range(10):
                personalizer.client(client)
        return

    class Net(FederatedModule):
        def __init__(self, body: nn.Module, head: nn.Module) -> None:
            super().__init__(lr=0.01, lr_milestones=())
            self.body, self.head = body, head

    settings: dict[str, Any] = {"max_epochs": 2, "limit_val_batches": 0}
    clients: Any
    if workload == "W4":
        from population import CLASSES, FEATURES, SAMPLES, examples

        net = Net(nn.Sequential(nn.Linear(FEATURES, 200), nn.ReLU()), nn.Linear(200, CLASSES))
        settings["max_epochs"] = 10
        clients = GeneratedClients(
            examples, num_clients=10_000, num_train=SAMPLES, num_test=SAMPLES, num_classes=CLASSES
        )
    else:
        if workload == "wide":
            inputs, layers = torch.randn(384, 3, 32, 32), [
                nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1),
                nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            ]  # fmt: skip
            net = Net(nn.Sequential(*layers), nn.Linear(64, 10))
        else:
            inputs, width = torch.randn(96, 1000), 4_000
            layers = [nn.Linear(1000, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()]
            net = Net(nn.Sequential(*layers), nn.Linear(width, 10))
        pairs = (inputs, torch.arange(len(inputs)) % 10)
        clients = ClientDatasets(
            train=[pairs], test=[pairs], num_classes=10, batch_size=len(inputs) // 3
        )
    FederatedTrainer(
        federation=Federation(
            FedAvg(), cohort_size=50 if workload == "W4" else 1, keep_freed_memory=keep
        ),
        **settings, **QUIET,
    ).fit(net, clients)  # fmt: skip


def child(workload: str, setting: str) -> None:
    """Train with one combination of settings, and print what it cost as JSON."""
    from fedlightning.engine import freed_memory

    warnings.simplefilter("ignore")
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    import workloads  # noqa: F401  # so that imports are not counted

    sizes = [] if setting == "none" else [int(size) << 20 for size in setting.split("/")]
    freed_memory._AFTERWARDS.clear()
    freed_memory._TRAINING.clear()
    freed_memory._TRAINING.update(
        {name: size for name, size in zip(OF_MALLOC_H, sizes, strict=False) if size}
    )
    begun, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
    train(workload, keep=bool(sizes))
    after = resource.getrusage(resource.RUSAGE_SELF)
    cost = {
        "faults": after.ru_minflt - before.ru_minflt,
        "system": after.ru_stime - before.ru_stime,
        "user": after.ru_utime - before.ru_utime,
        "wall": time.perf_counter() - begun,
        "peak": after.ru_maxrss / 1024,
    }
    print(json.dumps(cost))


def main() -> None:
    """Measure and print a Markdown table per workload."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workloads", nargs="+", default=list(WORKLOADS), choices=list(WORKLOADS))
    parser.add_argument("--settings", nargs="+", default=SETTINGS, help="threshold/trim/pad in MiB")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(*args.child)
        return
    print(f"{platform.machine()}, glibc {platform.libc_ver()[1]}, {date.today()}, one process each")
    for workload in args.workloads:
        print(f"\n| {workload}: {WORKLOADS[workload]} | faults | system s | user s | peak MiB |")
        print("|---|---|---|---|---|")
        for setting in args.settings:
            done = subprocess.run(
                [sys.executable, __file__, "--child", workload, setting],
                env={**os.environ, "PYTHONWARNINGS": "ignore"}, stdout=subprocess.PIPE, text=True,
                check=True,
            )  # fmt: skip
            cost = json.loads(done.stdout.splitlines()[-1])
            print(
                f"| {setting} | {cost['faults']:,} | {cost['system']:.2f} | {cost['user']:.2f} "
                f"| {cost['peak']:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
