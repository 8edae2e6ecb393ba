"""The command as a user runs it, on the digits."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from fedlightning.__main__ import main
from fedlightning.core.statistics import rank_correlation
from fedlightning.storage.locks import study_lock
from fedlightning.studies.leave_one_out import find_whole_run, plan_without

CONFIG = """
seed_everything: 3
model: {class_path: MLP, init_args: {hidden: [4], lr: 0.3, momentum: 0.0, lr_milestones: []}}
data: {class_path: Digits, init_args: {num_clients: 6, batch_size: 1000}}
federation: {algorithm: FedAvg, cohort_size: 3}
trainer:
  max_epochs: 4
  enable_model_summary: false
  enable_progress_bar: false
  callbacks:
    - {class_path: ClientInfluence, init_args: {clients: [1, 2, 4]}}
    - {class_path: PersonalizationCallback, init_args: {epochs: 1}}
    - slow.Slow
"""
SLOW = """
import os, time
import pytorch_lightning as pl

class Slow(pl.Callback):
    def on_train_epoch_end(self, trainer, module):
        time.sleep(float(os.environ.get("SECONDS_A_ROUND", "0")))
        if os.environ.get("BREAKS") and trainer.federated_loop.federation.leave_out == [1]:
            raise KeyError("my own mistake")
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """Return a folder in which a run was made."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "slow.py").write_text(SLOW)
    (folder / "whole.yaml").write_text(CONFIG)
    before, environment = Path.cwd(), dict(os.environ)
    try:
        os.chdir(folder)
        assert main(["fit", "--config", "whole.yaml"]) == 0
    finally:
        os.chdir(before)
        os.environ.clear()
        os.environ.update(environment)
        sys.path.remove(str(folder))
        sys.modules.pop("slow", None)
    return folder


@pytest.fixture
def run(finished, tmp_path, monkeypatch) -> Path:
    """Return the folder of the run in a copy of that folder."""
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.delitem(sys.modules, "slow", raising=False)
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    return Path("lightning_logs") / "version_0"


def table(path: Path) -> list[dict[str, float]]:
    with path.open() as file:
        return [{key: float(cell) for key, cell in row.items()} for row in csv.DictReader(file)]


def last_round(run: Path) -> dict[str, float]:
    return table_of_rounds(run)[-1]


def table_of_rounds(run: Path) -> list[dict[str, float]]:
    with (run / "metrics.csv").open() as file:
        return [
            {key: float(cell) for key, cell in row.items() if cell} for row in csv.DictReader(file)
        ]


def without(run: Path, client: int) -> Path:
    return run / "influence" / f"without_{client}" / "lightning_logs" / "version_0"


def state(run: Path, client: int) -> dict[str, object]:
    return json.loads((run / "influence" / f"without_{client}" / "study_run.json").read_text())


def test_replays_are_made_once_and_stand_beside_the_estimates(run, tmp_path, capsys):
    assert main(["influence", "--run", str(run), "--dry-run"]) == 0
    assert "without client 4: to be run" in capsys.readouterr().out
    assert not (run / "influence").exists()

    assert main(["influence", "--run", str(run)]) == 0
    shown = capsys.readouterr().out
    assert "[3/3]" in shown
    rows = {int(row["client_id"]): row for row in table(run / "influence" / "leave_one_out.csv")}
    assert set(rows) == {1, 2, 4}
    estimates = {int(row["client_id"]): row for row in table(run / "influence.csv")}
    for client, row in rows.items():
        # what a run by hand gives, with the client struck from every cohort
        words = ["fit", "--config", "whole.yaml", f"--federation.leave_out=[{client}]"]
        words += [f"--trainer.default_root_dir={client}", "--trainer.callbacks=slow.Slow"]
        assert main(words) == 0
        by_hand = tmp_path / str(client) / "lightning_logs" / "version_0"
        for metric in ("global/loss", "global/acc"):
            change = last_round(by_hand)[metric] - last_round(run)[metric]
            assert row[f"truth/{metric}"] == pytest.approx(change, abs=1e-12)
        assert row["estimate/global/loss"] == estimates[client]["influence/global/loss"]
        weights = [
            torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
            for folder in (by_hand, run)
        ]
        moved = torch.cat([(a.double() - b.double()).flatten() for a, b in zip(
            weights[0].values(), weights[1].values(), strict=True)])  # fmt: skip
        assert row["parameters"] == pytest.approx(float(moved.norm()), rel=1e-9)
        assert row["cosine"] > 0.9
    truth = [row["truth/global/loss"] for row in rows.values()]
    guesses = [row["estimate/global/loss"] for row in rows.values()]
    assert list(truth) == sorted(truth)
    said = re.search(r"Spearman's rank correlation of estimate and truth: (\S+)", shown)
    assert said is not None
    assert float(said[1]) == pytest.approx(rank_correlation(truth, guesses), abs=1e-3)
    assert (run / "influence" / "leave_one_out.png").read_bytes()[:4] == b"\x89PNG"

    before = {client: state(run, client) for client in rows}
    capsys.readouterr()
    assert main(["influence", "--run", str(run), "--clients", "1-2"]) == 0
    assert "2 done before" in capsys.readouterr().out
    assert {client: state(run, client) for client in rows} == before
    assert len(table(run / "influence" / "leave_one_out.csv")) == 2

    # the replays are no runs of their own to a report, unless it is asked about them
    assert find_whole_run(Path("lightning_logs")).folder == run
    assert main(["influence", "--run", str(run / "influence")]) == 2
    assert "runs are there" in capsys.readouterr().err


def test_without_estimates_the_truth_stands_alone(run, capsys):
    (run / "influence.csv").unlink()
    assert main(["influence", "--run", str(run)]) == 2
    assert "has no influence.csv: name the clients" in capsys.readouterr().err
    assert main(["influence", "--run", str(run), "--clients", "0", "--metric=global/acc"]) == 0
    assert "change of global/acc without the client" in capsys.readouterr().out
    (row,) = table(run / "influence" / "leave_one_out.csv")
    assert not [key for key in row if key.startswith("estimate/")]
    assert list(row)[3] == "truth/global/acc"


def command(*words: str, **environment: str) -> subprocess.Popen[str]:
    root = str(Path(__file__).parents[2])
    paths = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    return subprocess.Popen(
        [sys.executable, "-m", "fedlightning", *words],
        env={**os.environ, "PYTHONPATH": paths, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_replays_that_were_stopped_are_resumed_to_the_same_bits(run, capsys):
    process = command("influence", f"--run={run}", "--clients=2", SECONDS_A_ROUND="2")
    rounds = without(run, 2) / "rounds.csv"
    until = time.monotonic() + 120
    try:
        while process.poll() is None and time.monotonic() < until:
            if rounds.is_file() and rounds.read_text().count("\n") >= 3:
                break
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=120)
    assert process.returncode == 130, error
    assert "interrupted: 0 of 1 replays are done; the same command resumes." in error
    assert main(["influence", "--run", str(run), "--clients", "2"]) == 0
    assert "resumes after round" in capsys.readouterr().out
    assert state(run, 2)["attempts"] == 2
    words = ["fit", "--config", "whole.yaml", "--federation.leave_out=[2]"]
    words += ["--trainer.default_root_dir=again", "--trainer.callbacks=slow.Slow"]
    assert main(words) == 0
    again = Path("again") / "lightning_logs" / "version_0"
    assert table_of_rounds(without(run, 2)) == table_of_rounds(again)


def test_a_replay_that_fails_stops_no_other_and_is_named(run, monkeypatch, capsys):
    monkeypatch.setenv("BREAKS", "1")
    assert main(["influence", "--run", str(run), "--clients", "1,2"]) == 5
    captured = capsys.readouterr()
    (line,) = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert "1 of 2 runs failed: without client 1, seed 3: " in line
    assert "my own mistake" in line
    assert len(table(run / "influence" / "leave_one_out.csv")) == 1


def test_a_second_command_is_kept_out(run, capsys):
    with study_lock(run / "influence"):
        assert main(["influence", "--run", str(run)]) == 6
    assert "another compare, or a run that one has left" in capsys.readouterr().err


def test_a_replay_keeps_what_trains_and_leaves_out_what_watches(run):
    text = (run / "config.yaml").read_text()
    config = yaml.safe_load(text)
    config["trainer"]["callbacks"] += [
        {"class_path": "EarlyStopping", "init_args": {"monitor": "val/loss"}}
    ]
    config["trainer"] |= {"max_epochs": 50, "max_steps": 12, "devices": 2, "strategy": "ddp"}
    config["federation"]["leave_out"] = [5]
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    (planned,) = plan_without(find_whole_run(run), [1])
    trainer = planned.config["trainer"]
    names = [c if isinstance(c, str) else c["class_path"] for c in trainer["callbacks"]]
    assert names == ["slow.Slow", "fedlightning.callbacks.StopAfterRounds"]
    # as many rounds as the run has done, of as many planned ones
    assert trainer["callbacks"][-1]["init_args"] == {"rounds": 4}
    assert (trainer["max_epochs"], trainer["min_epochs"], trainer["max_steps"]) == (50, 4, 12)
    assert (trainer["devices"], trainer["strategy"]) == (1, "auto")
    assert planned.config["federation"]["leave_out"] == [1, 5]
    assert planned.config["seed_everything"] == 3
    config["trainer"]["callbacks"] += [
        {"class_path": "ModelCheckpoint", "init_args": {"monitor": "personalized/acc"}}
    ]
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    (planned,) = plan_without(find_whole_run(run), [1])
    assert "PersonalizationCallback" in str(planned.config["trainer"]["callbacks"])


@pytest.mark.parametrize(
    ("model", "federation"),
    [("lr_milestones: [0.25]", ""), ("warmup_steps: 1", "optimizer_state: keep")],
)
def test_a_run_that_was_cut_short_is_replayed_with_its_schedules(tmp_path, model, federation):
    """Its first rounds are those of a run by hand that nothing ends after them."""
    Path("cut.yaml").write_text(
        f"""
seed_everything: 3
model: {{class_path: MLP, init_args: {{hidden: [4], lr: 0.3, {model}}}}}
data: {{class_path: Digits, init_args: {{num_clients: 6, batch_size: 50}}}}
federation: {{algorithm: FedAvg, cohort_size: 3, {federation}}}
trainer:
  max_epochs: 8
  max_steps: 12
  enable_model_summary: false
  enable_progress_bar: false
"""
    )
    assert main(["fit", "--config=cut.yaml", "--trainer.default_root_dir=cut"]) == 0
    run = Path("cut") / "lightning_logs" / "version_0"
    assert len(table_of_rounds(run)) == 4
    assert main(["influence", f"--run={run}", "--clients=2"]) == 0
    words = ["fit", "--config=cut.yaml", "--federation.leave_out=[2]"]
    assert main([*words, "--trainer.default_root_dir=hand"]) == 0
    by_hand = table_of_rounds(Path("hand") / "lightning_logs" / "version_0")
    assert len(by_hand) > 4, "with a client less, as many updates take more rounds"
    assert table_of_rounds(without(run, 2)) == by_hand[:4]


def test_a_run_that_was_to_stop_after_some_rounds_trains_no_more_when_it_is_resumed(tmp_path):
    Path("stop.yaml").write_text(CONFIG.split("  callbacks:")[0])
    callback = "fedlightning.callbacks.StopAfterRounds"
    words = ["fit", "--config=stop.yaml", f"--trainer.callbacks={callback}"]
    words += ["--trainer.callbacks.rounds=2"]
    assert main(words) == 0
    run = Path("lightning_logs") / "version_0"
    before = (run / "metrics.csv").read_text()
    assert before.count("\n") == 1 + 2
    assert main([*words, "--ckpt_path=last"]) == 0
    assert (run / "metrics.csv").read_text() == before


def test_another_config_is_refused_where_replays_are(run, capsys):
    (planned,) = plan_without(find_whole_run(run), [1])
    planned.folder.mkdir(parents=True)
    facts = {"variant": planned.variant, "point": {}, "seed": 3, "digest": "another"}
    (planned.folder / "study_run.json").write_text(json.dumps(facts))
    assert main(["influence", "--run", str(run), "--clients", "1"]) == 2
    assert "replays the run with other settings" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ([], 2, "influence expects one run folder"),
        (["--run", "none"], 2, "--run none: no such folder"),
        (["--run", "."], 2, r"no run there: a run folder has config.yaml and metrics.csv"),
        (["--rum", "."], 2, "influence has no option --rum.*Did you mean 'run'"),
        (["--run", ".", "--trainer.devices=2"], 2, "influence changes no settings"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_made(words, code, message, tmp_path, capsys):
    assert main(["influence", *words]) == code
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert len(error.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--clients", "x"], 2, "clients must be ids or ranges of ids"),
        (["--clients", "0,77"], 2, "client 77 is not one of the run's 6 clients, 0 to 5"),
        (["--workers", "0"], 2, "--workers must be an integer >= 1"),
        (["--metric", "global/los"], 2, "Did you mean 'global/loss'"),
    ],
)
def test_options_that_do_not_fit_the_run_are_refused(run, words, code, message, capsys):
    assert main(["influence", "--run", str(run), *words]) == code
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert not (run / "influence").exists()


def test_a_run_without_metrics_on_test_data_cannot_be_compared(run, capsys):
    rows = (run / "metrics.csv").read_text().splitlines()
    (run / "metrics.csv").write_text("round,train/loss\n3,0.5\n")
    assert len(rows) == 5
    assert main(["influence", "--run", str(run), "--clients", "1"]) == 3
    assert "no metric on test data in the last round" in capsys.readouterr().err
    config = (run / "config.yaml").read_text()
    config = config.replace("seed_everything: 3", "seed_everything: true")
    (run / "config.yaml").write_text(config)
    assert main(["influence", "--run", str(run), "--clients", "1"]) == 2
    assert "seed_everything is True" in capsys.readouterr().err
