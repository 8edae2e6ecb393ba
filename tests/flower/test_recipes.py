"""Every recipe that can be deployed gives the simulation's bits, over Flower's messages."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("flwr", reason="needs the extra flower")

from fedlightning.cli.terminal import quiet
from fedlightning.deployment.refusals import refuse_algorithm
from fedlightning.deployment.server_loop import ServerTrainer
from fedlightning.errors import ConfigError
from tests.flower.loopback import LoopbackGrid, Run

RECIPES = sorted((Path(__file__).parents[2] / "configs" / "algorithms").glob("*.yaml"))
REFUSED = {
    "cyclic_vit": "ForgettingCallback evaluates clients",
    "fedbabu_server_data": "trains on examples at the server",
    "feddf": "needs public examples",
    "fedmd": "needs public examples",
    "influence": "ClientInfluence measures clients' gradients",
    "pfedhr": "needs public examples",
}
DEPLOYED = [path for path in RECIPES if path.stem not in REFUSED]
"""Those of ``docs/deployment.md``."""


def shrunk(path: Path, images: Path) -> list[str]:
    options = ["--trainer.max_epochs=2", "--trainer.limit_train_batches=1"]
    options += [
        "--trainer.check_val_every_n_epoch=1",
        "--trainer.callbacks.epochs=0",
    ]
    text = path.read_text()
    inner = "data.init_args." if "PermutedLabels" in text else ""
    options.append(f"--data.{inner}eval_clients=2")
    if "cohort_size: 1.0" not in text and "PoissonSampler" not in text:
        options.append("--federation.cohort_size=2")
    if "class_path: Digits" in text and "PublicShare" not in text and path.stem != "fedbuff":
        options.append(f"--data.{inner}num_clients={8 if inner else 5}")  # 4 are held out
    if "FashionMNIST" in text:
        options += [f"--data.root={images}", "--data.num_clients=5"]
    if path.stem == "fedvi":
        options += ["--data.num_clients=5", "--data.held_out_clients=1"]
    return options


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    pixels = np.random.default_rng(0).integers(0, 256, (100, 28, 28), dtype=np.uint8)
    for prefix in ("train", "t10k"):
        write_idx(folder / f"{prefix}-images-idx3-ubyte.gz", pixels)
        write_idx(folder / f"{prefix}-labels-idx1-ubyte.gz", (np.arange(100) % 10).astype("u1"))
    return folder


def write_idx(path: Path, array: np.ndarray) -> None:
    header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes()))


@pytest.fixture(autouse=True)
def as_on_the_command_line(monkeypatch):
    monkeypatch.setattr("fedlightning.trainer.RequirementCache", lambda name: False)
    with quiet():
        yield


@pytest.mark.parametrize("path", DEPLOYED, ids=lambda path: path.stem)
def test_deployed_equals_simulated(path, images, tmp_path):
    run = Run(f"algorithms/{path.name}", tmp_path, shrunk(path, images))
    simulated = run.simulate()
    deployed = run.deploy(LoopbackGrid(run.nodes()))
    assert deployed == simulated


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_deployed_says_why(name, tmp_path):
    trainer = Run(f"algorithms/{name}.yaml", tmp_path).build(ServerTrainer, "deployed")
    with pytest.raises(ConfigError, match=f"cannot be deployed: .*{REFUSED[name]}"):
        refuse_algorithm(trainer.federation, trainer)
