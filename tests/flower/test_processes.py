"""Flower's real processes on loopback: a relay that listens, nodes and servers that are killed."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch

pytest.importorskip("flwr", reason="needs the extra flower")

from safetensors.torch import load_file

from fedlightning.__main__ import main
from fedlightning.flower.local_run import (
    Processes,
    environment,
    follow,
    free_port,
    wait_until_ready,
)

pytestmark = pytest.mark.slow
CONFIG = """\
seed_everything: 3
model: {class_path: MLP, init_args: {in_features: 64, hidden: [32], num_classes: 10, lr: 0.1}}
data:
  class_path: Digits
  init_args: {num_clients: 3, batch_size: 20, partition: IID}
federation:
  algorithm:
    class_path: Composite
    init_args: {algorithms: [FedPer, SCAFFOLD, {class_path: FedAdam, init_args: {lr: 0.03}}]}
  cohort_size: 1.0
  on_client_failure: retry
trainer:
  max_epochs: 4
  callbacks:
    - {class_path: PersonalizationCallback, init_args: {epochs: 1, nearest_mean: false}}
"""


class Relay:
    """Passes bytes between nodes and server, and keeps a copy."""

    def __init__(self, target: int) -> None:
        self.seen = bytearray()
        self.port = free_port()
        self._target = target
        listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            near, _ = listener.accept()
            try:
                far = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                near.close()
                continue
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(1 << 16):
                self.seen += data
                sink.sendall(data)
        except OSError:
            pass
        finally:
            sink.close()

    def has(self, value: torch.Tensor) -> int:
        """Return how many of a tensor's pieces of 64 bytes have passed, and how many it has."""
        content = value.contiguous().numpy().tobytes()
        pieces = [content[at : at + 64] for at in range(0, len(content) - 63, 64)]
        assert pieces
        return sum(piece in self.seen for piece in pieces)


class Federation:
    """A server and three nodes of this machine, which talk through a relay."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "run.yaml").write_text(CONFIG)
        root = f"--trainer.default_root_dir={folder / 'deployed'}"
        assert main(["deploy", f"--config={folder / 'run.yaml'}", f"--output={folder / 'app'}",
                     root]) == 0  # fmt: skip
        self.port = free_port()
        home = folder / "flwr"
        home.mkdir()
        (home / "config.toml").write_text(
            f'[superlink]\ndefault = "here"\n[superlink.here]\naddress = "127.0.0.1:{self.port}"\n'
            "insecure = true\n"
        )
        self.variables = environment(home)
        self.processes = Processes(folder / "logs", self.variables)
        self.processes.start(
            "superlink",
            ["flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", str(self.port),
             "--disable-runtime-dependency-installation"],
        )  # fmt: skip
        wait_until_ready(self.port, self.processes)
        self.relay = Relay(self.port)
        for number in range(3):
            self.start_node(number)

    def start_node(self, number: int) -> subprocess.Popen[bytes]:
        store = self.folder / "stores" / str(number)
        return self.processes.start(
            f"node-{number}",
            ["flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{self.relay.port}",
             "--host", "127.0.0.1", "--port", str(free_port()),
             "--node-config", f'client={number} store="{store}"'],
        )  # fmt: skip

    def kill_node(self, number: int) -> None:
        self.processes.kill(f"node-{number}")

    def rounds(self) -> int:
        found = list((self.folder / "deployed").rglob("rounds.csv"))
        return len(found[0].read_text().splitlines()) - 1 if found else 0

    def run(self, *options: str) -> int:
        return follow(self.folder / "app", _Unwatched(), self.variables, self._say, *options)

    def _say(self, line: str) -> None:
        with (self.folder / "run.log").open("a") as log:
            log.write(line + "\n")


class _Unwatched(Processes):
    """Lets processes come and go."""

    def __init__(self) -> None:
        pass

    def check(self) -> None:
        pass


@pytest.fixture
def federation(tmp_path) -> Iterator[Federation]:
    made = Federation(tmp_path)
    yield made
    made.processes.stop()


def meanwhile(job: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=job)
    thread.start()
    return thread


def wait_for(what: Callable[[], bool], seconds: float = 400) -> None:
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until, "it does not happen"
        time.sleep(0.2)


def among(family: list[int], name: str) -> list[int]:
    found = []
    for number in family:
        with suppress(OSError):
            if name in Path(f"/proc/{number}/cmdline").read_bytes().decode():
                found.append(number)
    return found


def assert_simulations_result(federation: Federation) -> None:
    folder = federation.folder
    words = [sys.executable, "-m", "fedlightning", "fit", f"--config={folder / 'run.yaml'}"]
    words += [f"--trainer.default_root_dir={folder / 'sim'}"]
    subprocess.run(words, check=True, env=federation.variables, stdout=subprocess.DEVNULL)
    sim, dep = (folder / name / "lightning_logs" / "version_0" for name in ("sim", "deployed"))
    for name in ("metrics.csv", "clients.csv"):
        assert (dep / name).read_text() == (sim / name).read_text()
    one, other = (
        torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in (sim, dep)
    )
    for key, value in one["state_dict"].items():
        assert torch.equal(value, other["state_dict"][key]), key
    for number in range(3):
        name = f"personalized/client_{number:05}.safetensors"
        simulated = load_file(sim / name)
        deployed = load_file(folder / "stores" / str(number) / name)
        assert all(torch.equal(value, deployed[key]) for key, value in simulated.items())


def test_a_node_is_killed_in_its_update_and_no_head_is_on_the_wire(federation):
    def kill_and_restart() -> None:
        wait_for(lambda: federation.rounds() >= 1)
        wait_for(lambda: bool(among(federation.processes.family("node-1"), "flwr-clientapp")))
        federation.kill_node(1)
        for _ in range(30):  # the server refuses it for a minute
            process = federation.start_node(1)
            time.sleep(10)
            if process.poll() is None:
                return

    thread = meanwhile(kill_and_restart)
    assert federation.run() == 0
    thread.join()
    assert "its node is lost" in (federation.folder / "run.log").read_text()
    assert_simulations_result(federation)
    relay, shared, heads = federation.relay, 0, 0
    last = next((federation.folder / "deployed").rglob("last.ckpt"))
    for key, value in torch.load(last, weights_only=True)["state_dict"].items():
        shared += relay.has(value) if key.startswith("body") and value.numel() > 16 else 0
    for store in (federation.folder / "stores").iterdir():
        for path in (store / "kept").iterdir():
            for key, value in load_file(path).items():
                heads += relay.has(value) if key.endswith("/head.weight") else 0
        own = load_file(next((store / "personalized").glob("*.safetensors")))
        heads += relay.has(own["head.weight"])
    assert shared > 0
    assert heads == 0


def test_the_server_is_killed_in_a_round(federation):
    def kill() -> None:
        wait_for(lambda: federation.rounds() >= 2)
        for number in among(federation.processes.family("superlink"), "flwr-serverapp"):
            os.kill(number, signal.SIGKILL)

    thread = meanwhile(kill)
    federation.run()
    thread.join()
    assert federation.rounds() < 4
    assert federation.run() == 0
    assert "going on from" in (federation.folder / "run.log").read_text()
    assert_simulations_result(federation)


def test_another_config_at_a_node_is_refused(federation):
    other = federation.folder / "other.yaml"
    shutil.copy(federation.folder / "app" / "config.yaml", other)
    other.write_text(other.read_text().replace("lr: 0.1", "lr: 0.2"))
    federation.processes.kill("node-2")
    store = federation.folder / "stores" / "other"
    federation.processes.start(
        "node-2",
        ["flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{federation.port}",
         "--host", "127.0.0.1", "--port", str(free_port()),
         "--node-config", f'client=2 store="{store}" config="{other}"'],
    )  # fmt: skip
    time.sleep(70)  # until the server has forgotten the killed node
    assert federation.run() == 5
    log = (federation.folder / "run.log").read_text()
    assert "error: nodes have other settings (client 2: " in log
    assert not list((federation.folder / "deployed").rglob("last.ckpt"))
