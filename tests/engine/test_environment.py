"""What a run needs of the machine is looked at before there is a folder or a second process."""

import os
import socket
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from pytorch_lightning.loggers import WandbLogger

from fedlightning import FedAvg
from fedlightning.engine.checks import environment
from fedlightning.engine.checks.environment import check_folder, check_port, check_wandb
from fedlightning.errors import EnvironmentFailure
from tests.toys import fit, net

CLOSED = "http://127.0.0.1:9"  # the discard service: nobody listens there


@pytest.fixture
def wandb(monkeypatch, tmp_path):
    """A package wandb that nobody has logged in to, and a home without a key."""
    for name in list(os.environ):
        if name.startswith("WANDB_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    for name in ("HOME", "WANDB_CONFIG_DIR", "WANDB_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_BASE_URL", CLOSED)
    monkeypatch.setattr(environment, "_can_ask", lambda: False)
    package = SimpleNamespace(run=None, login=lambda **_: False)
    monkeypatch.setitem(sys.modules, "wandb", package)
    monkeypatch.setattr("pytorch_lightning.loggers.wandb._WANDB_AVAILABLE", True)
    return package


@pytest.fixture
def server():
    """A port that somebody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def test_wandb_without_a_key_is_refused_and_leaves_nothing(wandb, tmp_path):
    runs = tmp_path / "runs"
    with pytest.raises(EnvironmentFailure, match=r"no API key for 127.0.0.1.*WANDB_MODE=offline"):
        fit(net(), FedAvg(), folder=runs, logger=WandbLogger(save_dir=tmp_path))
    assert not runs.exists()


def test_wandb_without_network_is_refused_at_once(wandb, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "key")
    with pytest.raises(EnvironmentFailure, match=r"127.0.0.1:9 cannot be reached .*MODE=offline"):
        fit(net(), FedAvg(), folder=tmp_path / "runs", logger=WandbLogger(save_dir=tmp_path))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("kept", ["variable", "netrc", "settings", "login"])
def test_a_key_is_found_where_wandb_keeps_it(wandb, tmp_path, monkeypatch, server, kept):
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server}")
    with pytest.raises(EnvironmentFailure, match="no API key"):
        check_wandb({})
    if kept == "variable":
        monkeypatch.setenv("WANDB_API_KEY", "key")
    elif kept == "netrc":
        (tmp_path / "netrc").write_text("machine 127.0.0.1 login user password key\n")
        (tmp_path / "netrc").chmod(0o600)
    elif kept == "settings":
        (tmp_path / "settings").write_text("[default]\napi_key = key\n")
    else:
        wandb.login = lambda prompt, verify: not prompt and not verify
    check_wandb({})


@pytest.mark.parametrize("how", ["variable", "argument", "file", "running"])
def test_wandb_that_stays_offline_needs_neither_key_nor_network(wandb, tmp_path, monkeypatch, how):
    given = {}
    if how == "variable":
        monkeypatch.setenv("WANDB_MODE", "offline")
    elif how == "argument":
        given = {"mode": "disabled"}
    elif how == "file":
        (tmp_path / "wandb").mkdir()
        (tmp_path / "wandb" / "settings").write_text("[default]\nmode = offline\n")
    else:
        wandb.run = object()
    check_wandb(given)


def test_a_proxy_is_the_way_to_the_network(wandb, monkeypatch, server):
    monkeypatch.setenv("WANDB_API_KEY", "key")
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example")
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
    with pytest.raises(EnvironmentFailure, match=r"MASTER_PORT=.* is no port .*not in use"):
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
