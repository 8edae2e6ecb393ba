"""``deploy --output``: an app without code of ours, with the user's own."""

from __future__ import annotations

import shlex
import sys
from importlib import import_module
from pathlib import Path

import pytest
import yaml

pytest.importorskip("flwr", reason="needs the extra flower")

import tomllib
from flwr.common.config import parse_config_args

from fedlightning.__main__ import main
from fedlightning.flower.settings import App, client_number

MODULE = """\
from own.layers import width
from fedlightning.models import MLP

class Net(MLP):
    def __init__(self, lr: float = 0.1):
        super().__init__(in_features=64, hidden=[width], num_classes=10, lr=lr)
"""
CONFIG = """\
model: {class_path: own.net.Net, init_args: {lr: 0.3}}
data: {class_path: Digits, init_args: {num_clients: 2, partition: IID}}
federation: {algorithm: FedAvg, cohort_size: 2}
trainer: {max_epochs: 2, default_root_dir: runs}
"""


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "__init__.py").write_text("")
    (tmp_path / "own" / "layers.py").write_text("width = 8\n")
    (tmp_path / "own" / "net.py").write_text(MODULE)
    (tmp_path / "own" / "test_net.py").write_text("")
    (tmp_path / "my_run.yaml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in sys.modules if name == "own" or name.startswith("own.")]:
        del sys.modules[name]
    yield tmp_path
    import_module("own.net")  # which stays: parsers import the modules of all classes that live


def test_an_app_has_config_modules_and_instructions(project, capsys):
    words = ["deploy", "--config=my_run.yaml", "--output=app", "--clients=aarau,basel"]
    assert main([*words, "--trainer.max_epochs=7"]) == 0
    assert "NODES.md says how to run it" in capsys.readouterr().out
    app = project / "app"
    files = sorted(p.relative_to(app).as_posix() for p in app.rglob("*") if p.is_file())
    assert files == [
        "NODES.md", "config.yaml", "own/__init__.py", "own/layers.py", "own/net.py",
        "pyproject.toml", "systemd/fedlightning-node@.service",
        "systemd/fedlightning-server.service",
    ]  # fmt: skip
    config = yaml.safe_load((app / "config.yaml").read_text())
    assert config["trainer"]["max_epochs"] == 7
    assert config["trainer"]["default_root_dir"] == str(project / "runs")
    about = tomllib.loads((app / "pyproject.toml").read_text())
    assert about["project"]["name"] == "my-run"
    assert about["tool"]["flwr"]["app"]["components"] == {
        "serverapp": "fedlightning.flower.server_app:app",
        "clientapp": "fedlightning.flower.client_app:app",
    }
    assert about["tool"]["flwr"]["app"]["config"]["clients"] == "aarau,basel"
    page = (app / "NODES.md").read_text()
    assert "--node-config 'client=\"basel\" store=\"'$PWD'/client-basel\"'" in page
    assert "root=" not in page  # the digits are in no folder


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ("aarau, basel", ["aarau", "basel"]),
        ("[aarau,basel]", ["aarau", "basel"]),
        ('"Smith, Jones",St. Gallen', ["Smith, Jones", "St. Gallen"]),
    ],
)
def test_nodes_are_told_the_names_that_the_app_knows(project, given, names):
    assert main(["deploy", "--config=my_run.yaml", "--output=app", f"--clients={given}"]) == 0
    about = tomllib.loads((project / "app" / "pyproject.toml").read_text())
    app = App.of(about["tool"]["flwr"]["app"]["config"], project / "app")
    assert list(app.clients) == names
    page = (project / "app" / "NODES.md").read_text()
    lines = [line.strip() for line in page.splitlines()]
    commands = [
        line for line in lines if line.startswith(("ssh-keygen -q", "flwr supernode", "--"))
    ]
    words = [shlex.split(line.removesuffix("\\")) for line in commands]
    for number, name in enumerate(names):
        key, keygen = f"node-{name}", ["ssh-keygen", "-q", "-t", "ecdsa", "-b", "384", "-N", ""]
        assert [*keygen, "-f", key] in words
        assert ["flwr", "supernode", "register", f"{key}.pub", "here", "--name", name] in words
        assert ["--auth-supernode-private-key", key] in words
        (config,) = [w[1] for w in words if w[0] == "--node-config" and f'="{name}"' in w[1]]
        told = parse_config_args([config])
        assert client_number(told["client"], app.clients) == number
        assert told["store"] == f"$PWD/client-{name}"


def test_an_app_with_masks_says_how_nodes_know_each_other(project):
    secure = ["--federation.aggregator=SecureSum", "--federation.algorithm=FedBABU"]
    words = ["deploy", "--config=my_run.yaml", "--output=app", "--clients=aarau,basel", *secure]
    assert main(words) == 0
    page = (project / "app" / "NODES.md").read_text()
    assert "key=\"'$PWD'/node-basel\" peers=\"'$PWD'/peers\"'" in page
    assert "**not from the\nserver**" in page
    unit = (project / "app" / "systemd" / "fedlightning-node@.service").read_text()
    assert 'key="/etc/fedlightning/node-%i" peers="/etc/fedlightning/peers"\'' in unit


def test_the_digest_follows_config_modules_and_overrides(project):
    app = project / "app"
    assert main(["deploy", "--config=my_run.yaml", "--output=app"]) == 0
    first = App(app)
    digests = {first.digest(), App(app, ("--trainer.max_epochs=3",)).digest()}
    (app / "own" / "layers.py").write_text("width = 9\n")
    digests.add(first.digest())
    (app / "config.yaml").write_text((app / "config.yaml").read_text().replace("0.3", "0.4"))
    digests.add(first.digest())
    assert len(digests) == 4
    (app / "config.yaml").write_text("# a remark\n" + (app / "config.yaml").read_text())
    assert first.digest() in digests


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["--config=my_run.yaml"], 2, "expects either --output DIR or --local N"),
        (["--output=app"], 2, "expects a config"),
        (["--config=my_run.yaml", "--output="], 2, "--output expects a value"),
        (["--config=my_run.yaml", "--local=many"], 2, "--local expects a number of nodes"),
        (["--config=algorithms/feddf.yaml", "--output=app"], 2, "FedDF needs public examples"),
        (["--config=my_run.yaml", "--output=."], 2, "--output . holds other files"),
        (["--config=my_run.yaml", "--output=a", "--clients=x"], 2, "--clients names 1, and data"),
        (["--config=my_run.yaml", "--output=app", "--clients=a,a"], 2, "names 'a' 2 times"),
        (["--config=my_run.yaml", "--output=app", "--clients=a,b/c"], 2, "'b/c' has '/'"),
        (["--config=my_run.yaml", "--output=app", "--clients=a,O'Hara"], 2, 'has "\'", which'),
        (["--config=my_run.yaml", "--local=3", "--data.num_clients=2"], 2, "the config has 2"),
        (
            ["--config=algorithms/perinvfl.yaml", "--local=3"],
            2,
            "the config has 4 clients, and each needs a node; data.num_clients=3 is refused: ",
        ),
    ],
)
def test_mistakes_are_named_and_nothing_is_written(project, capsys, words, code, text):
    assert main(["deploy", *words]) == code
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert text in error
    assert not (project / "app").exists()


TABLE = """\
data:
  class_path: FederatedTable
  init_args: {train: table.csv, client: site, label: y}
model: {class_path: MLP, init_args: {in_features: 1, hidden: [2], num_classes: 2}}
"""
WITHOUT_NUMBER = """\
data: {class_path: GeneratedClients, init_args: {examples: own.sites.examples, num_classes: 10}}
model: {class_path: own.net.Net}
"""


@pytest.fixture
def started(monkeypatch) -> list[list[str]]:
    """Has nothing started; returns the clients of each run that would have been."""
    runs: list[list[str]] = []

    def run_here(app, clients, work, masked):
        runs.append(list(clients))
        return 0

    monkeypatch.setattr("fedlightning.flower.deploy_command.run_here", run_here)
    return runs


@pytest.mark.parametrize(
    ("config", "count"),
    [
        ("my_run.yaml", 2),  # as it is
        ("my_run.yaml", 3),
        ("algorithms/perinvfl.yaml", 4),  # has one share of disagreement for each
        ("algorithms/fedres.yaml", 40),
        ("table.yaml", 3),
        ("without_number.yaml", 2),
    ],
)
def test_a_try_out_starts_a_node_for_each_client(project, started, config, count):
    if config == "table.yaml":
        pytest.importorskip("pandas", reason="needs the extra tables")
    (project / "table.yaml").write_text(TABLE)
    (project / "table.csv").write_text("site,x,y\n" + "a,0.5,0\nb,1.5,1\nc,2.5,0\n" * 9)
    (project / "own" / "sites.py").write_text("def examples(client, split): ...\n")
    (project / "without_number.yaml").write_text(WITHOUT_NUMBER)
    assert main(["deploy", f"--config={config}", f"--local={count}"]) == 0
    assert started == [[str(client) for client in range(count)]]


def test_without_flower_the_extra_is_named(project, capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["deploy", "--config=my_run.yaml", "--output=app"]) == 6
    assert "pip install 'fedlightning[flower]'" in capsys.readouterr().err
