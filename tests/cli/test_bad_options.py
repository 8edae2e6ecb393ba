"""Bad options: exit code 2, a line with the key, the value and the way out, nothing left behind."""

import sys

import pytest
import torch

from tests.cli.error_tables import table


@pytest.mark.parametrize(("options", "message"), table("bad_options.txt"))
def test_a_bad_option(run, tmp_path, options, message):
    ended = run("B", *options.split(" "))
    assert ended.code == 2
    assert ended.error.startswith(f"error: {message}")
    assert ended.out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["ok.yaml"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without GPU")
@pytest.mark.parametrize("name", ["cuda", "gpu"])
def test_no_gpu(run, name):
    ended = run("B", f"--trainer.accelerator={name}")
    assert ended.code == 2
    assert ended.error.startswith(f"error: trainer.accelerator={name}: no GPU")


@pytest.mark.parametrize(("text", "message"), table("bad_files.txt"))
def test_a_bad_file(run, write, tmp_path, text, message):
    write("bad.yaml", text)
    ended = run("B", "--config=bad.yaml")
    assert ended.code == 2
    assert ended.error.startswith(f"error: {message}")
    assert (tmp_path / "bad.yaml").read_text() == text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.yaml", "ok.yaml"]


def test_what_is_missing(run):
    assert run("fit").error.startswith("error: data and model are required; pass a config")
    assert run("fit", "--model=MLP").error.startswith("error: data is required; pass a config")


def test_neutral_values_of_flags_without_federated_meaning_are_accepted(run):
    ended = run(
        "B", "--trainer.overfit_batches=0.0", "--trainer.sync_batchnorm=false", "--print_config"
    )
    assert ended.code == 0
    assert "overfit_batches" not in ended.out
    assert "sync_batchnorm" not in ended.out


MINE = """
from fedlightning import FederatedModule
from torch import nn

class Net(FederatedModule):
    def __init__(self, width: int, depth: int = 1):
        super().__init__()
        if depth < 0:
            raise ValueError("depth is negative")
        self.body, self.head = nn.Linear(64, width), nn.Linear(width, 10)

def function(): ...
"""


@pytest.mark.parametrize(
    ("file", "options", "message"),
    [
        (MINE, "--model=net.Net", "model.width is required by Net."),
        (MINE, "--model=net.Nett", "model: cannot import Nett from net ("),
        (
            MINE,
            "--model=net.function",
            "model='net.function' is not a subclass of LightningModule.",
        ),
        (
            MINE,
            "--model=net.Net --model.width=2 --model.depth=-1",
            "model: Net cannot be built: ValueError: depth is negative",
        ),
        ("class Net(:", "--model=net.Net", "model: cannot import net.Net: invalid syntax (net.py,"),
        (
            "import nosuchpackage",
            "--model=net.Net",
            "model: cannot import net.Net: it needs ",
        ),
        ("1 / 0", "--model=net.Net", "model: cannot import net.Net: division by zero."),
    ],
)
def test_a_class_of_ones_own(run, write, monkeypatch, file, options, message):
    monkeypatch.delitem(sys.modules, "net", raising=False)
    write("net.py", file)
    ended = run("B", *options.split())
    assert ended.code == 2
    assert ended.error.startswith(f"error: {message}")


OTHER = """
import sys, types
package = sys.modules["lightning"] = types.ModuleType("lightning")
package.LightningModule = type("LightningModule", (), {"__module__": "lightning.pytorch"})
import lightning as L

class Net(L.LightningModule):
    def __init__(self, width: int = 1): ...
"""


@pytest.mark.parametrize("options", ["--model=other.Net", "--model=other.Net --model.width=3"])
def test_a_class_of_the_package_lightning(run, write, monkeypatch, options):
    monkeypatch.delitem(sys.modules, "other", raising=False)
    monkeypatch.setitem(sys.modules, "lightning", None)
    write("other.py", OTHER)
    ended = run("B", *options.split())
    assert ended.code == 2
    assert ended.error.startswith("error: model='other.Net' is not a subclass of LightningModule, ")
    assert "but a class of the package `lightning`; fedlightning uses `pytorch_" in ended.error


def test_a_class_that_needs_the_package_lightning(run, write, monkeypatch):
    monkeypatch.delitem(sys.modules, "needing", raising=False)
    write("needing.py", """raise ModuleNotFoundError("No module named 'lightning'")""")
    error = run("B", "--model=needing.Net").error
    assert error.startswith("error: model: cannot import needing.Net")
    assert "write `import pytorch_lightning as pl` instead of `import lightning as L`" in error
