"""The search as a user runs it, on the digits; runs are forks of the test's process."""

import csv
import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml

from fedlightning.__main__ import main
from fedlightning.errors import ConfigError, EnvironmentFailure
from fedlightning.studies.run_state import rounds_done
from fedlightning.studies.tune_command import tune
from fedlightning.studies.tuning.validation_values import read_values

STUDY = """
output: out
workers: 1
seeds: 2
base:
  model: {class_path: MLP, init_args: {hidden: [4]}}
  data:
    class_path: Digits
    init_args:
      num_clients: 4
      batch_size: 100
      val_fraction: 0.3
  federation: {cohort_size: 2}
  trainer:
    max_epochs: 3
    enable_model_summary: false
    enable_checkpointing: true
variants: [FedAvg, FedProx]
tune:
  trials: 3
  startup_trials: 1
  space:
    model.lr: {low: 1.0e-5, high: 1.0, log: true}
  variants:
    FedProx:
      federation.algorithm.mu: [0.001, 0.01, 0.1]
"""


@pytest.fixture
def study(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(STUDY)
    return path


def rows(folder):
    with (folder / "trials.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def without_seconds(found):
    return [{key: value for key, value in row.items() if key != "seconds"} for row in found]


def last_values(folder, column):
    """Return the last value of a column, by folder of a trial."""
    found = {}
    for path in folder.rglob("metrics.csv"):
        with path.open(encoding="utf-8", newline="") as file:
            values = [float(row[column]) for row in csv.DictReader(file) if row.get(column)]
        found[path.relative_to(folder).parts[:2]] = values[-1]
    return found


@pytest.mark.usefixtures("forked_runs")
def test_a_search_chooses_by_validation_data_under_one_budget(study, tmp_path, capsys):
    assert main(["tune", "--config", str(study)]) == 0
    shown = capsys.readouterr().out
    assert "global/acc" not in shown, "no number on test data is shown"
    folder = tmp_path / "out_tuning"
    found = rows(folder)
    assert [row["variant"] for row in found] == ["FedAvg"] * 3 + ["FedProx"] * 3
    for row in found:
        assert row["state"] == "complete" or int(row["rounds"]) < 3
    # the best, by a loop over what the runs themselves have written
    values = last_values(folder / "trials", "val/acc")
    written = yaml.safe_load((folder / "study.yaml").read_text())
    for variant in ("FedAvg", "FedProx"):
        mine = [row for row in found if row["variant"] == variant and row["state"] == "complete"]
        by_hand = {row["trial"]: values[variant, f"trial_{int(row['trial']):03d}"] for row in mine}
        assert {row["trial"]: float(row["val/acc"]) for row in mine} == pytest.approx(by_hand)
        best = next(row for row in mine if by_hand[row["trial"]] == max(by_hand.values()))
        chosen = written["variants"][variant]
        assert chosen["model.lr"] == float(best["model.lr"])
        assert chosen["federation.algorithm"] == variant
    assert written["variants"]["FedProx"]["federation.algorithm.mu"] in (0.001, 0.01, 0.1)
    assert not list((folder / "trials").rglob("last.ckpt")), "trials keep tables"

    # the same draws for what both search, in the trial that is drawn at random
    assert found[0]["model.lr"] == found[3]["model.lr"]
    # the journal is lines of JSON, nothing pickled
    assert all(json.loads(line) for line in (folder / "journal.log").read_text().splitlines())
    # compare takes the result as it is
    assert main(["compare", "--config", str(folder / "study.yaml"), "--dry-run"]) == 0
    assert "4 runs (2 variants x 2 seeds)" in capsys.readouterr().out

    # nothing is run again; more trials go on, other settings are refused
    assert main(["tune", "--config", str(study)]) == 0
    assert "6 done before" in capsys.readouterr().out
    assert rows(folder) == found
    assert main(["tune", "--config", str(study), "--trials=2"]) == 2
    assert "give at least as many" in capsys.readouterr().err
    assert main(["tune", "--config", str(study), "--data.batch_size=50"]) == 2
    assert "has a search of FedAvg with other settings" in capsys.readouterr().err


@pytest.mark.usefixtures("forked_runs")
def test_the_same_seed_gives_the_same_search_also_after_a_stop(study, tmp_path):
    study.write_text(STUDY.replace("[FedAvg, FedProx]", "[FedProx]").replace("ls: 3", "ls: 2"))
    whole = tune(study, output=tmp_path / "whole")
    stopped = tmp_path / "stopped"

    def stop():
        until = time.monotonic() + 120
        while time.monotonic() < until:
            if any(rounds_done(path) for path in stopped.glob("trials/FedProx/trial_001")):
                os.kill(os.getpid(), signal.SIGINT)
                return
            time.sleep(0.01)

    watcher = threading.Thread(target=stop)
    watcher.start()
    words = ["tune", str(study), f"--output={stopped}"]
    code = main(words)
    watcher.join()
    assert code in (0, 130)
    assert main(words) == 0
    assert without_seconds(rows(stopped)) == without_seconds(rows(tmp_path / "whole"))
    assert whole.chosen["FedProx"] == whole.best("FedProx").settings


@pytest.mark.usefixtures("forked_runs")
def test_a_trial_that_lags_behind_is_stopped(study, tmp_path):
    text = STUDY.replace("variants: [FedAvg, FedProx]", "variants: [FedAvg]")
    text = text.split("  variants:")[0].replace("trials: 3", "trials: 4\n  warmup_rounds: 0")
    space = "model.lr: {low: 1.0e-5, high: 1.0, log: true}"
    study.write_text(text.replace(space, "model.lr: [1.0, 0.9, 1.0e-9, 1.0e-10]"))
    found = tune(study, settings={"model.momentum": 0.0})
    states = {trial.number: (trial.state, trial.rounds) for trial in found.trials}
    complete = [trial for trial in found.trials if trial.state == "complete"]
    assert complete
    assert all(rounds == 3 for state, rounds in states.values() if state == "complete")
    # the median rule by hand: best so far, against the median of the others at that round
    by_number = {
        trial.number: dict(
            read_values(tmp_path / "out_tuning/trials/FedAvg" / f"trial_{trial.number:03d}",
                        personal=False).by_round)
        for trial in found.trials
    }  # fmt: skip
    for trial in found.trials:
        stopped = 0
        for at in (1, 2, 3):
            others = sorted(
                by_number[other.number][at]
                for other in found.trials
                if other.number < trial.number and at <= other.rounds
            )
            ended = sum(t.number < trial.number and t.state == "complete" for t in found.trials)
            if not others or not ended or stopped:
                continue
            middle = (others[(len(others) - 1) // 2] + others[len(others) // 2]) / 2
            if max(by_number[trial.number][r] for r in range(1, at + 1)) < middle:
                stopped = at
        assert (trial.state, trial.rounds) == (
            ("stopped", stopped) if stopped else ("complete", 3)
        ), trial


@pytest.mark.usefixtures("forked_runs")
def test_less_is_better_where_the_main_metric_says_so(study, tmp_path):
    study.write_text(STUDY.replace("variants: [FedAvg, FedProx]", "variants: [FedAvg]")
                     .split("  variants:")[0] + "  pruner: none\n")  # fmt: skip
    found = tune(study, workers=2, settings={"federation.main_metric": "loss"})
    losses = [trial.value for trial in found.trials]
    assert (found.metric, found.mode) == ("val/loss", "min")
    assert found.best("FedAvg").value == min(losses) < max(losses)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("      val_fraction: 0.3\n", "", "FedAvg: tune chooses by validation data.*Digits holds "
         "none out; set data.val_fraction, for instance to 0.2"),
        ("model.lr:", "model.learning_rat:", "FedAvg: .*learning_rat"),
        ("federation.algorithm.mu", "federation.algorithm.my", "FedProx: .*Did you mean 'mu|mu"),
        ("[0.001, 0.01, 0.1]", "[0.001, -1.0]", "FedProx: .*mu"),
        ("seeds: 2", "seeds: 2\ngrid: {federation.cohort_size: [1, 2]}", "one condition is tuned"),
        ("[FedAvg, FedProx]", "[FedAvg, FedProx, FedPer]", "FedPer: clients of FedPer keep parts "
         ".*no client has.*add PersonalizationCallback"),
        ("trials: 3", "trails: 3", "Did you mean 'trials'"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_before_anything_is_made(study, tmp_path, capsys, old, new, message):
    assert old in STUDY
    study.write_text(STUDY.replace(old, new))
    before = sorted(tmp_path.iterdir())
    assert main(["tune", "--config", str(study)]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert sorted(tmp_path.iterdir()) == before


def test_optuna_is_named_where_it_is_missing(study, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(EnvironmentFailure, match=r"pip install 'fedlightning\[tune\]'"):
        tune(study)


def test_what_is_undefined_is_not_what_was_not_measured(tmp_path):
    folder = tmp_path / "lightning_logs" / "version_0"
    folder.mkdir(parents=True)
    table = (
        "round,global/mse,val/mse,val/mse_undefined\n"
        "0,1.0,0.9,\n1,1.0,0.4,2\n2,1.0,nan,4\n3,1.0,,\n"
    )
    (folder / "metrics.csv").write_text(table)
    found = read_values(tmp_path, personal=False)
    assert [number for number, _ in found.by_round] == [1, 2, 3]
    assert (math.isnan(found.last), found.undefined, found.rounds) == (True, 4, 4)
    (folder / "metrics.csv").write_text(table.replace("2,1.0,nan,4", "2,1.0,,"))
    found = read_values(tmp_path, personal=False)
    assert (found.last, found.undefined) == (0.4, 2)


def test_values_are_of_the_main_view_and_of_whole_rows(tmp_path):
    folder = tmp_path / "lightning_logs" / "version_0"
    folder.mkdir(parents=True)
    (folder / "metrics.csv").write_text(
        "round,global/acc,val/acc,held_out/val/acc,personalized/val_acc,personalized/acc\n"
        "0,0.1,0.2,0.9,,0.9\n1,0.1,0.3,0.9,0.6,0.9\n2,0.1,0."
    )
    of_global = read_values(tmp_path, personal=False)
    assert (of_global.column, of_global.by_round) == ("val/acc", ((1, 0.2), (2, 0.3)))
    personal = read_values(tmp_path, personal=True)
    assert (personal.column, personal.by_round) == ("personalized/val_acc", ((2, 0.6),))
    assert read_values(tmp_path, personal=False, given="f1").column == ""


def test_compare_says_that_it_does_not_tune(study, capsys):
    assert main(["compare", "--config", str(study), "--dry-run"]) == 0
    assert "python -m fedlightning tune" in capsys.readouterr().err


@pytest.mark.slow
def test_a_killed_search_goes_on(study, tmp_path):
    """What it has started lives on for a while, and holds the folder until it ends."""
    words = [sys.executable, "-m", "fedlightning", "tune", str(study)]
    settings = {
        "cwd": tmp_path,
        "env": {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "text": True,
    }
    output = tmp_path / "out_tuning"
    process = subprocess.Popen(words, **settings)
    until = time.monotonic() + 600
    while not list(output.glob("trials/FedProx/trial_001/*/*/metrics.csv")):
        assert time.monotonic() < until
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.kill()
    process.communicate()
    assert not (output / "trials.csv").exists()
    while True:
        done = subprocess.run(words, check=False, **settings)
        if "another compare" not in done.stderr:
            break
        assert time.monotonic() < until
        time.sleep(1)
    assert done.returncode == 0, done.stderr
    assert "; 3 done before" in done.stdout
    whole = subprocess.run([*words, f"--output={tmp_path / 'whole'}"], check=False, **settings)
    assert whole.returncode == 0, whole.stderr
    found = without_seconds(rows(output))
    assert len(found) == 6
    assert found == without_seconds(rows(tmp_path / "whole"))


def test_seed_everything_belongs_into_the_file(study):
    with pytest.raises(ConfigError, match=r"trials use tune.run_seed"):
        tune(study, settings={"seed_everything": 3})
