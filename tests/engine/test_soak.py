"""A long run needs no more memory, file handles or processes than a short one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc"),
]

SOAK = """
import gc, json, os, sys, warnings
from pathlib import Path
import numpy as np, pytorch_lightning as pl
from fedlightning import Algorithm, PersonalizationCallback
from fedlightning.datamodules import GeneratedClients
from tests.toys import fit, net

warnings.simplefilter("ignore")
EARLY, LATE = json.loads(sys.argv[1])
SETTINGS = json.loads(sys.argv[2])


def examples(client, split):
    rng = np.random.default_rng(client)
    x = rng.random((10, 4), np.float32)
    return x, x[:, :3].argmax(axis=1)


class Gauge(pl.Callback):
    seen = []

    def on_train_epoch_start(self, trainer, module):
        if trainer.current_epoch in (EARLY, LATE):
            gc.collect()
            self.seen.append({
                "pages": int(Path("/proc/self/statm").read_text().split()[1]),
                "handles": len(os.listdir("/proc/self/fd")),
                "children": Path(f"/proc/self/task/{os.getpid()}/children").read_text(),
            })


fit(
    net(dropout=0.1),
    Algorithm(train="full", share="body"),
    rounds=LATE + 1,
    cohort=5,
    folder=Path("run"),
    callbacks=[Gauge(), PersonalizationCallback(epochs=1, every_n_rounds=50)],
    datamodule=GeneratedClients(
        examples, num_clients=SETTINGS["num_clients"], eval_clients=5, num_classes=3, seed=0
    ),
    federation=SETTINGS["federation"],
    enable_progress_bar=True,
)
print("\\n" + json.dumps(Gauge.seen))
"""


def gauge(early, late, **settings):
    """Return what a federation holds at the start of two of its rounds."""
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", SOAK, json.dumps([early, late]), json.dumps(settings)],
        env={**os.environ, "PYTHONPATH": str(root)},
        check=True, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    "settings",
    [
        {"num_clients": 50, "federation": {}},
        {"num_clients": 1_000_000, "federation": {"personal_memory_mb": 0}},
    ],
    ids=["in memory", "a million clients, kept on disk"],
)
def test_memory_after_a_thousand_rounds_is_that_after_a_hundred(settings):
    early, late = gauge(100, 1000, **settings)
    assert late["pages"] <= 1.01 * early["pages"]
    assert late["handles"] == early["handles"]
    assert late["children"] == early["children"]
