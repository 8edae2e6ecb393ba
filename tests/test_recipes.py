"""Every shipped recipe runs, shrunk, on images of noise in the original files' formats."""

from __future__ import annotations

import gzip
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from fedlightning.__main__ import main

CONFIGS = Path(__file__).parents[1] / "configs"
RECIPES = sorted([*CONFIGS.glob("*.yaml"), *CONFIGS.glob("algorithms/*.yaml")])


_NEEDS = {"ClientDP": "dp_accounting", "PrivateSGD": "opacus"}
"""Packages that are no dependencies, by a word in the recipes that need them."""


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Return a folder with a hundred images for training and as many to test, in each format."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for prefix in ("train", "t10k"):
        images = rng.integers(0, 256, (100, 28, 28), dtype=np.uint8)
        labels = (np.arange(100) % 10).astype(np.uint8)
        _write_idx(folder / f"{prefix}-images-idx3-ubyte.gz", images)
        _write_idx(folder / f"{prefix}-labels-idx1-ubyte.gz", labels)
    for name, key, classes, files in (
        ("cifar-10-batches-py", "labels", 10, [f"data_batch_{i}" for i in range(1, 6)]),
        ("cifar-10-batches-py", "labels", 10, ["test_batch"]),
        ("cifar-100-python", "fine_labels", 100, ["train"]),
        ("cifar-100-python", "fine_labels", 100, ["test"]),
    ):
        (folder / name).mkdir(exist_ok=True)
        n = 100 // len(files)
        for file in files:
            pixels = rng.integers(0, 256, (n, 3072), dtype=np.uint8)
            content = {"data": pixels, key: (np.arange(n) % classes).tolist()}
            (folder / name / file).write_bytes(pickle.dumps(content, protocol=2))
    return folder


def _write_idx(path: Path, array: np.ndarray) -> None:
    header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes()))


def _shrunk(recipe: Path, root: Path) -> list[str]:
    if "FashionMNIST" not in (text := recipe.read_text()) and "CIFAR" not in text:
        return []
    shards = int(recipe.stem.rpartition("_s")[2]) if "_s" in recipe.stem else 2
    clients = 100 // shards if "cifar100" in recipe.stem else 10
    return [f"--data.root={root}", f"--data.num_clients={clients}"]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipe_runs(recipe, root, tmp_path):
    for word, package in _NEEDS.items():
        if word in recipe.read_text():
            pytest.importorskip(package)
    code = main(
        [
            "fit",
            f"--config={recipe.relative_to(CONFIGS).as_posix()}",
            "--trainer.max_epochs=1",
            "--trainer.limit_train_batches=1",
            "--trainer.num_sanity_val_steps=0",
            "--trainer.enable_progress_bar=false",
            "--trainer.callbacks.init_args.epochs=1",
            f"--trainer.default_root_dir={tmp_path}",
            *_shrunk(recipe, root),
        ]
    )
    assert code == 0
    run = tmp_path / "lightning_logs" / "version_0"
    assert (run / "clients.csv").exists()
    assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["epoch"] == 0


def test_quickstart_is_clearly_ahead_of_its_own_initial_accuracy(tmp_path):
    from fedlightning.reporting import read_clients_csv

    args = ["fit", "--config=quickstart.yaml", f"--trainer.default_root_dir={tmp_path}"]
    assert main([*args, "--trainer.enable_progress_bar=false"]) == 0
    records = read_clients_csv(next(tmp_path.rglob("clients.csv")))
    before = sum(record.acc_before for record in records) / len(records)
    after = sum(record.acc_after for record in records) / len(records)
    assert after > 0.9
    assert after > before + 0.1


def test_the_papers_settings_are_in_the_papers_recipes():
    import yaml

    for recipe in RECIPES:
        if not recipe.stem.startswith("cifar"):
            continue
        config = yaml.safe_load(recipe.read_text())
        model, data = config["model"]["init_args"], config["data"]["init_args"]
        tune = config["trainer"]["callbacks"][0]["init_args"]
        assert (model["lr"], model["momentum"], model["weight_decay"]) == (0.1, 0.9, 0.0)
        assert (data["num_clients"], data["batch_size"], data["eval_batch_size"]) == (100, 50, 128)
        assert data["partition"]["class_path"] == "Shards"
        assert config["federation"]["cohort_size"] == 0.1
        assert config["federation"]["local_epochs"] * config["trainer"]["max_epochs"] == 320
        assert tune == {"part": "full", "epochs": 5, "lr": 1e-3}
