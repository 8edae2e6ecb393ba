"""The live page: what run folders say, what it answers, and what it refuses."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from http.client import HTTPConnection
from pathlib import Path

import pytest
import yaml

from fedlightning import FedAvg, FederatedTrainer, Federation
from fedlightning.__main__ import main
from fedlightning.datamodules import Digits
from fedlightning.models import MLP
from fedlightning.reporting.client_records import ClientRecord, write_clients_csv
from fedlightning.storage.locks import RunLock, lock_state
from fedlightning.watching.figures import curve_drawings, looks_of
from fedlightning.watching.page import POLICY, live_part
from fedlightning.watching.runs import RunFolders
from fedlightning.watching.server import LivePage, listen, serve

METRICS = "round,train/loss,global/acc,clients/failed_timeout\n0,2.0,0.25,0\n1,1.0,0.5,3\n"


def make_run(folder: Path, rounds_wanted: int = 4, metrics: str = METRICS) -> Path:
    folder.mkdir(parents=True)
    config = {"federation": {"algorithm": {"class_path": "fedlightning.FedAvg"}},
              "trainer": {"max_epochs": rounds_wanted}}  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "metrics.csv").write_text(metrics)
    (folder / "rounds.csv").write_text("round,seconds,clients,cohort_crc32\n0,1.0,2,5\n1,3.0,2,6\n")
    return folder


def only(folder: Path):
    (run,) = RunFolders([folder]).read()
    return run


# -- what folders say --------------------------------------------------------------------------


def test_a_run_under_way_has_rounds_time_left_and_failures(tmp_path):
    lock = RunLock(make_run(tmp_path / "version_0"))
    lock.acquire()
    run = only(tmp_path)
    lock.release()
    assert (run.state, run.rounds_done, run.rounds_wanted) == ("running", 2, 4)
    assert run.seconds_left == 2 * 2.0  # two rounds of (1 + 3) / 2 seconds
    assert run.failures == {"timeout": 3}
    assert run.failed_by_round == [(1, 3)]


def test_a_torn_last_line_is_left_out(tmp_path):
    make_run(tmp_path / "version_0", metrics=METRICS + "2,0.5,0.7")
    assert only(tmp_path).rounds_done == 2


@pytest.mark.parametrize("name", ["config.yaml", "metrics.csv", "rounds.csv", "clients.csv"])
def test_files_of_any_content_are_no_end_of_the_page(tmp_path, name):
    (make_run(tmp_path / "version_0") / name).write_bytes(b"\xff{[,\n\x00" * 3)
    assert "version_0" in live_part(RunFolders([tmp_path]).read(), [])


def test_a_killed_run_leaves_its_lock(tmp_path):
    folder = make_run(tmp_path / "version_0")
    code = f"from fedlightning.storage.locks import RunLock; RunLock({str(folder)!r}).acquire()"
    child = subprocess.Popen(
        [sys.executable, "-c", f"{code}; print('held', flush=True); input()"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    assert child.stdout.readline() == "held\n"
    assert lock_state(folder) == "held"
    assert only(tmp_path).state == "running"
    child.send_signal(signal.SIGKILL)
    child.communicate()
    assert lock_state(folder) == "left"
    assert only(tmp_path).state == "killed"


def test_looking_at_a_lock_does_not_release_it(tmp_path):
    lock = RunLock(make_run(tmp_path / "version_0"))
    lock.acquire()
    assert [lock_state(lock.folder) for _ in range(2)] == ["held", "held"]
    lock.release()
    assert lock_state(lock.folder) == "free"


class Failing(MLP):
    """Raises in the round that it is given."""

    error: BaseException = ValueError("no <b>such</b> batch")

    def training_step(self, batch, batch_idx):
        if self.trainer.current_epoch == 1:
            raise self.error
        return super().training_step(batch, batch_idx)


def fit(model: MLP, **kwargs) -> None:
    trainer = FederatedTrainer(
        federation=Federation(FedAvg(), cohort_size=1), max_epochs=2, enable_progress_bar=False,
        default_root_dir="runs", enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(model, datamodule=Digits(num_clients=2), **kwargs)


def test_failed_stopped_and_finished_runs_are_told_apart():
    model = Failing(in_features=64, hidden=[4])
    with pytest.raises(Exception, match="no <b>such</b> batch"):
        fit(model)
    failed = only(Path("runs"))
    assert failed.state == "failed"
    assert "no <b>such</b> batch" in failed.note
    assert "no &lt;b&gt;such&lt;/b&gt; batch" in live_part([failed], [])

    model.error = KeyboardInterrupt()
    with pytest.raises(SystemExit):
        fit(model, ckpt_path="last")
    assert (only(Path("runs")).state, only(Path("runs")).note) == ("stopped", "")

    fit(MLP(in_features=64, hidden=[4]), ckpt_path="last")
    finished = only(Path("runs"))
    assert (finished.state, finished.rounds_done) == ("finished", 2)
    assert not list(Path("runs").rglob("ended.json"))


def test_a_study_says_how_its_runs_have_ended(tmp_path):
    for at, (state, shown) in enumerate(
        [("done", "finished"), ("failed", "failed"), ("interrupted", "stopped")]
    ):
        above = tmp_path / "runs" / "FedAvg" / f"seed_{at}"
        make_run(above / "lightning_logs" / "version_0")
        error = "client 3: bad" if state == "failed" else ""
        record = {"variant": "FedAvg", "point": {"lr": "lr=0.1"}, "seed": at, "digest": "d",
                  "state": state, "error": error}  # fmt: skip
        (above / "study_run.json").write_text(json.dumps(record))
        run = RunFolders([tmp_path]).read()[at]
        assert (run.name, run.state) == (f"FedAvg, lr=0.1, seed {at}", shown)
    assert RunFolders([tmp_path]).read()[1].note == "client 3: bad"


def test_what_personalize_has_made_is_finished_and_has_no_rounds(tmp_path):
    make_run(tmp_path / "version_1", metrics="round,initial/acc,personalized/acc\n0,0.5,0.75\n")
    run = only(tmp_path)
    assert (run.state, run.rounds_done, run.rounds_wanted) == ("finished", 0, None)


def in_a_study(folder: Path, metrics: str = METRICS, version: int = 0) -> Path:
    above = folder / "runs" / "FedAvg" / "seed_0"
    made = make_run(above / "lightning_logs" / f"version_{version}", metrics=metrics)
    record = {"variant": "FedAvg", "point": {}, "seed": 0, "digest": "d", "state": "done"}
    (above / "study_run.json").write_text(json.dumps(record))
    return made


def test_runs_of_one_name_are_told_apart_by_where_they_lie(tmp_path):
    in_a_study(tmp_path / "one")
    folders = RunFolders([tmp_path])
    alone = folders.read()
    assert [run.name for run in alone] == ["FedAvg, seed 0"]
    in_a_study(tmp_path / "two", METRICS.replace("0.5", "0.75"))
    assert [run.name for run in folders.read()] == ["FedAvg, seed 0 (one)", "FedAvg, seed 0 (two)"]
    assert folders.read()[0] is folders.read()[0]

    in_a_study(tmp_path / "one", "round,initial/acc,personalized/acc\n0,0.5,0.875\n", version=1)
    runs = folders.read()
    assert len({run.name for run in runs}) == 3
    assert [run.name.partition("(")[2].partition("/")[0] for run in runs] == ["one", "one", "two"]
    for name in "ab":
        make_run(tmp_path / name / "logs" / "version_0")
    several = RunFolders([tmp_path / name / "logs" for name in "ab"]).read()
    assert [run.name for run in several] == ["logs/version_0 (a)", "logs/version_0 (b)"]


@pytest.mark.pictures
def test_each_run_has_a_curve_of_its_own(tmp_path):
    in_a_study(tmp_path / "one")
    in_a_study(tmp_path / "two", METRICS.replace("0.5", "0.75"))
    in_a_study(tmp_path / "two", "round,initial/acc,personalized/acc\n0,0.5,0.875\n", version=1)
    runs = RunFolders([tmp_path]).read()
    drawn = curve_drawings(runs)[0]
    assert re.findall(r"FedAvg, seed 0 \([^)]*\): (\d+)", drawn) == ["50", "75"]
    assert list(looks_of(runs)) == [run.name for run in runs[:2]]


def test_what_has_not_changed_is_not_read_again(tmp_path):
    make_run(tmp_path / "version_0")
    make_run(tmp_path / "version_1")
    folders = RunFolders([tmp_path])
    first = folders.read()
    (tmp_path / "version_1" / "metrics.csv").write_text(METRICS + "2,0.5,0.75,0\n")
    second = folders.read()
    assert second[0] is first[0]
    assert second[1].rounds_done == 3


# -- what it answers ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server of a folder that does not exist yet."""
    folder = tmp_path_factory.mktemp("watched") / "runs"
    listening = listen("127.0.0.1", 0)
    page = LivePage([folder])
    arguments = (page, "127.0.0.1", listening)
    threading.Thread(target=serve, args=arguments, daemon=True).start()
    return folder, listening.getsockname()[1]


def ask(port: int, path: str = "/", method: str = "GET", **headers: str):
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request(method, path, headers={"Host": f"127.0.0.1:{port}", **headers})
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer, text


@pytest.mark.pictures
def test_a_folder_that_appears_later_is_shown_with_its_clients_names_escaped(server, monkeypatch):
    folder, port = server
    monkeypatch.setattr("fedlightning.watching.server._FRESH", 0.0)
    answer, text = ask(port)
    assert answer.status == 200
    assert "This page waits for one" in text
    make_run(folder / "version_0")
    nan = float("nan")
    name = "<script>alert(1)</script>"
    records = [ClientRecord(0, 5, 4, 0.25, 0.5, nan, nan, {}, name),
               ClientRecord(1, 5, 4, 0.75, 1.0, nan, nan, {}, "mayo")]  # fmt: skip
    write_clients_csv(folder / "version_0" / "clients.csv", records)
    _, text = ask(port)
    assert "2 of 4 rounds" in text
    assert name not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert text.count("<svg") == 3  # accuracy, loss, clients
    assert not re.findall(r'(?:src|href)="(?!#)[^"]*"', text)


def test_an_unchanged_page_is_not_sent_again(server):
    _, port = server
    first, _ = ask(port, "/live")
    again, text = ask(port, "/live", **{"If-None-Match": first.getheader("ETag")})
    assert (again.status, text) == (304, "")


def test_nothing_from_elsewhere_is_allowed(server):
    answer, text = ask(server[1])
    assert re.findall("<script", text) == ["<script"]
    assert "default-src 'none'" in POLICY
    for each in (answer, ask(server[1], "/none")[0], ask(server[1], method="POST")[0]):
        assert each.getheader("Content-Security-Policy") == POLICY
        assert each.getheader("X-Content-Type-Options") == "nosniff"
    allowed = ask(server[1], method="POST")[0].getheader("Allow")
    assert set(allowed.split(", ")) == {"GET", "HEAD"}
    assert ask(server[1], "/none", Host="evil.example")[0].status == 400


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", ""])
def test_other_names_of_this_machine_are_refused(server, host):
    answer, text = ask(server[1], Host=host)
    assert (answer.status, text) == (400, "unknown host\n")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_only_reading_is_possible(server, method):
    assert ask(server[1], method=method)[0].status == 405


@pytest.mark.parametrize(
    "path", ["/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/version_0/config.yaml", "/live/.."]
)
def test_no_path_leads_to_a_file(server, path):
    assert ask(server[1], path)[0].status == 404


# -- the command -------------------------------------------------------------------------------


def test_the_command_serves_until_it_is_interrupted(tmp_path):
    command = [sys.executable, "-m", "fedlightning", "watch", str(tmp_path), "--port", "0"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                             env=environment)  # fmt: skip
    line = child.stdout.readline()
    address = re.search(r"http://127\.0\.0\.1:\d+", line)[0]
    with urllib.request.urlopen(address, timeout=60) as answer:
        assert b"waits for one" in answer.read()
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=60)
    assert (child.returncode, out, err.strip()) == (130, "", "interrupted.")


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        ([], 2, "watch expects folders"),
        (["runs", "--prot=1"], 2, "Did you mean 'port'?"),
        (["runs", "--port=70000"], 2, "--port"),
        (["runs", "--trainer.max_epochs=1"], 2, "watch changes no settings"),
        (["runs", "--host=203.0.113.7"], 6, "cannot listen on 203.0.113.7, port 8000"),
    ],
)
def test_mistakes_are_named(words, code, text, capsys):
    assert main(["watch", *words]) == code
    assert text in capsys.readouterr().err


def test_a_port_in_use_is_named_with_the_way_out(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["watch", "runs", f"--port={port}"]) == 6
    assert "--port 0 takes a free one" in capsys.readouterr().err


def test_another_host_is_warned_of(monkeypatch, capsys):
    monkeypatch.setattr("fedlightning.watching.server.serve", lambda *_: None)
    assert main(["watch", "runs", "--host=0.0.0.0", "--port=0"]) == 0
    assert "it has no login" in capsys.readouterr().err


def test_missing_packages_are_named_with_their_extra(monkeypatch, capsys):
    monkeypatch.setattr("fedlightning.watching.watch_command.find_spec", lambda _: None)
    assert main(["watch", "runs"]) == 6
    assert "fedlightning[watch]" in capsys.readouterr().err
