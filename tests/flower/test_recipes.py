"""Every recipe that can be deployed gives the simulation's bits, over Flower's messages."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="needs the extra flower")

from fedlightning.cli.terminal import quiet
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


def shrunk(path: Path) -> list[str]:
    options = ["--trainer.max_epochs=2", "--trainer.limit_train_batches=1"]
    options += ["--trainer.check_val_every_n_epoch=1", "--trainer.callbacks.epochs=0"]
    text = path.read_text()
    if "cohort_size: 1.0" not in text:
        options.append("--federation.cohort_size=2")
    if "class_path: Digits" in text and "PublicShare" not in text and path.stem != "fedbuff":
        nested = "PermutedLabels" in text
        options.append(f"--data.{'data.init_args.' if nested else ''}num_clients=5")
    return options


@pytest.fixture(autouse=True)
def as_on_the_command_line(monkeypatch):
    for module in ("fedlightning.callbacks.run_record", "fedlightning.personalization.results"):
        monkeypatch.setattr(f"{module}.save_figure", lambda *args: None)
    with quiet():
        yield


@pytest.mark.parametrize("path", DEPLOYED, ids=lambda path: path.stem)
def test_deployed_equals_simulated(path, tmp_path):
    run = Run(f"algorithms/{path.name}", tmp_path, shrunk(path))
    simulated = run.simulate()
    deployed = run.deploy(LoopbackGrid(run.nodes()))
    assert deployed == simulated


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_deployed_says_why(name, tmp_path):
    run = Run(f"algorithms/{name}.yaml", tmp_path, ["--trainer.max_epochs=1"])
    with pytest.raises(ConfigError, match=f"cannot be deployed: .*{REFUSED[name]}"):
        run.deploy(LoopbackGrid(run.nodes()))
