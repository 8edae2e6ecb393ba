"""What a run needs of the machine is looked at before there is a folder or a second process."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from pytorch_lightning.loggers import WandbLogger

from fedlightning import FedAvg
from fedlightning.engine.checks.environment import check_folder, check_port, check_wandb
from fedlightning.errors import EnvironmentFailure
from tests.toys import fit, net

ROOT = Path(__file__).parents[2]
CLOSED = "http://127.0.0.1:9"  # the discard service: nobody listens there


@pytest.fixture
def wandb(monkeypatch):
    """A package wandb that is logged in, at a server that nothing answers for."""
    for name in list(os.environ):
        if name.startswith("WANDB_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    settings = SimpleNamespace(mode="online", base_url=CLOSED)
    package = SimpleNamespace(
        run=None, settings=settings, login=lambda: True, setup=lambda: package
    )
    monkeypatch.setitem(sys.modules, "wandb", package)
    monkeypatch.setattr("pytorch_lightning.loggers.wandb._WANDB_AVAILABLE", True)
    return package


@pytest.fixture
def server():
    """A port that somebody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def no_key():
    raise ValueError("No API key configured. Use `wandb login` to log in.")


def test_wandb_without_a_key_is_refused_and_leaves_nothing(wandb, tmp_path, server):
    wandb.settings.base_url = f"http://127.0.0.1:{server}"
    check_wandb({})
    wandb.login = no_key
    runs = tmp_path / "runs"
    with pytest.raises(EnvironmentFailure, match=r"wandb: No API key .* Or WANDB_MODE=offline"):
        fit(net(), FedAvg(), folder=runs, logger=WandbLogger(save_dir=tmp_path))
    assert not runs.exists()
    check_wandb({"settings": SimpleNamespace(api_key="key")})


def test_wandb_without_network_is_refused_at_once(wandb, tmp_path):
    with pytest.raises(EnvironmentFailure, match=r"127.0.0.1:9 cannot be reached .*MODE=offline"):
        fit(net(), FedAvg(), folder=tmp_path / "runs", logger=WandbLogger(save_dir=tmp_path))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("how", ["variable", "argument", "settings", "running"])
def test_wandb_that_stays_offline_needs_neither_key_nor_network(wandb, monkeypatch, how):
    wandb.login = no_key
    given = {}
    if how == "variable":
        monkeypatch.setenv("WANDB_MODE", "offline")
    elif how == "argument":
        given = {"mode": "disabled"}
    elif how == "settings":
        wandb.settings.mode = "offline"
    else:
        wandb.run = object()
    check_wandb(given)


def test_the_installed_wandb_says_where_it_logs_to_and_that_it_has_no_key(monkeypatch, tmp_path):
    code = (
        "from fedlightning.engine.checks.environment import check_wandb\n"
        "from fedlightning.errors import EnvironmentFailure\n"
        "try: check_wandb({})\n"
        "except EnvironmentFailure as error: print(error)"
    )
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        kept = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
        environment = {
            **{name: value for name, value in kept.items() if not name.startswith("WANDB_")},
            **{"HOME": str(tmp_path), "NETRC": str(tmp_path / "netrc"), "WANDB_BASE_URL": url},
        }
        ended = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env=environment, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    assert re.match(r"wandb: .*API key.*WANDB_MODE=offline", ended.stdout), ended


def test_a_proxy_is_the_way_to_the_network(wandb, monkeypatch, server):
    wandb.settings.base_url = "https://wandb.example"
    monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{server}")
    check_wandb({})
    monkeypatch.setenv("https_proxy", CLOSED)
    with pytest.raises(EnvironmentFailure, match=r"wandb\.example cannot be reached"):
        check_wandb({})


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(EnvironmentFailure, match=r"pip install fedlightning\[wandb\]"):
        check_wandb({})


@pytest.mark.parametrize("given", ["0", "65536", "-1", "http", ""])
def test_what_is_no_port_is_refused(given):
    with pytest.raises(EnvironmentFailure, match=r"MASTER_PORT=.* is not a port .*not in use"):
        check_port(given, listens=False)


def test_a_port_in_use_is_refused_before_there_is_a_second_process(server, tmp_path, monkeypatch):
    check_port(str(server), listens=False)
    monkeypatch.setenv("MASTER_PORT", str(server))
    runs = tmp_path / "runs"
    with pytest.raises(EnvironmentFailure, match=f"port {server} .MASTER_PORT. is in use"):
        fit(net(), FedAvg(), folder=runs, devices=2, accelerator="cpu")
    assert not runs.exists()
    fit(net(), FedAvg(), folder=runs, rounds=1)  # one worker needs no port


def test_a_port_that_was_just_given_back_is_free(server):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            listener.accept()[0].close()
    check_port(str(port))


@pytest.fixture
def read_only(monkeypatch):
    """Folders of that name cannot be written to, as for whoever is not root."""
    asked = os.access
    monkeypatch.setattr(
        os, "access", lambda path, mode: Path(path).name != "mine" and asked(path, mode)
    )


def test_a_folder_that_is_not_writable_is_refused_before_the_first_round(tmp_path, read_only):
    folder = tmp_path / "mine"
    folder.mkdir()
    with pytest.raises(EnvironmentFailure, match=r"mine is not writable; choose another trainer"):
        check_folder(folder)
    with pytest.raises(EnvironmentFailure, match=r"cannot create .*: .*mine is not writable"):
        fit(net(), FedAvg(), folder=folder)
    assert list(folder.iterdir()) == []
    check_folder(tmp_path / "other" / "deep")
