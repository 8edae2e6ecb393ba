"""The command as a user runs it, on the digits."""

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

from fedlightning.__main__ import main
from fedlightning.storage.locks import study_lock
from fedlightning.studies.plan import PlannedRun
from fedlightning.studies.results import collect
from fedlightning.studies.run_reader import find_run_folders
from fedlightning.studies.run_state import archive
from fedlightning.watching.runs import find_runs

STUDY = """
output: out
workers: 2
seeds: 2
base:
  model: {class_path: MLP, init_args: {hidden: [4]}}
  data:
    class_path: Digits
    init_args:
      num_clients: 10
      batch_size: 100
      partition: {class_path: Shards, init_args: {per_client: 2}}
  federation: {cohort_size: 2}
  trainer:
    max_epochs: 6
    enable_model_summary: false
    callbacks: [{class_path: PersonalizationCallback, init_args: {epochs: 1}}]
settings:
  trainer.callbacks+: slow.Slow
variants: [FedAvg, FedBABU]
"""
SLOW = """
import os, time
import pytorch_lightning as pl

class Slow(pl.Callback):
    def on_train_epoch_end(self, trainer, module):
        time.sleep(float(os.environ.get("SECONDS_A_ROUND", "0")))

class Breaks(pl.Callback):
    def on_train_epoch_end(self, trainer, module):
        raise KeyError("my own mistake")
"""


@pytest.fixture
def study(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.delitem(sys.modules, "slow", raising=False)
    (tmp_path / "slow.py").write_text(SLOW)
    path = tmp_path / "study.yaml"
    path.write_text(STUDY)
    return path


def command(*words, **environment):
    root = str(Path(__file__).parents[2])
    paths = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    return subprocess.Popen(
        [sys.executable, "-m", "fedlightning", *words],
        env={**os.environ, "PYTHONPATH": paths, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def states(folder):
    found = sorted((folder / "runs").rglob("study_run.json"))
    return {
        path.parent.relative_to(folder / "runs").as_posix(): json.loads(path.read_text())
        for path in found
    }


def wait_for(condition, seconds=120):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "nothing came"
        time.sleep(0.05)


def rounds_in(folder):
    return [max(0, table.read_text().count("\n") - 1) for table in folder.rglob("rounds.csv")]


def test_a_study_stopped_in_the_middle_goes_on_to_the_same_bits(study, tmp_path, capsys):
    out = tmp_path / "out"
    process = command("compare", "study.yaml", SECONDS_A_ROUND="1.0")
    try:
        wait_for(lambda: max(rounds_in(out), default=0) >= 2 or process.poll() is not None)
    finally:
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=120)
    assert process.returncode == 130, error
    assert "interrupted: 0 of 4 runs are done; the same command resumes." in error
    stopped = states(out)
    assert {state["state"] for state in stopped.values()} == {"interrupted"}
    assert not (out / "report.html").exists()
    assert max(rounds_in(out)) < 6

    assert main(["compare", "study.yaml", "--dry-run"]) == 0
    assert "to be resumed after round" in capsys.readouterr().out
    assert main(["compare", "study.yaml"]) == 0
    shown = capsys.readouterr().out
    assert "resumes after round" in shown
    assert "[4/4]" in shown
    done = states(out)
    assert list(done) == ["FedAvg/seed_0", "FedAvg/seed_1", "FedBABU/seed_0", "FedBABU/seed_1"]
    assert {state["state"] for state in done.values()} == {"done"}
    assert all(done[name]["digest"] == state["digest"] for name, state in stopped.items())

    runs = {name: out / "runs" / name / "lightning_logs" / "version_0" for name in done}
    for seed in (0, 1):
        one, two = runs[f"FedAvg/seed_{seed}"], runs[f"FedBABU/seed_{seed}"]
        assert (one / "partition.json").read_bytes() == (two / "partition.json").read_bytes()
        assert _cohorts(one) == _cohorts(two)
    assert _cohorts(runs["FedAvg/seed_0"]) != _cohorts(runs["FedAvg/seed_1"])
    assert (out / "report.html").stat().st_size > 10_000

    # the run that was stopped, against one that was not
    resumed = next(name for name, state in done.items() if state["attempts"] == 2)
    config = out / "runs" / resumed / "config.yaml"
    assert main(["fit", "--config", str(config), "--trainer.default_root_dir", "whole"]) == 0
    whole = tmp_path / "whole" / "lightning_logs" / "version_0"
    for name in ("metrics.csv", "clients.csv"):
        assert (whole / name).read_bytes() == (runs[resumed] / name).read_bytes(), name
    assert _cohorts(whole) == _cohorts(runs[resumed])

    _what_is_done_is_not_run_again(out, capsys)
    _other_settings_are_refused_or_run_again(out, capsys)


def _what_is_done_is_not_run_again(out, capsys):
    before = states(out)
    assert main(["compare", "study.yaml", "--no-report"]) == 0
    assert states(out) == before
    assert "4 done before" in capsys.readouterr().out


def _other_settings_are_refused_or_run_again(out, capsys):
    words = ["compare", "study.yaml", "--no-report", "--model.lr=0.5", "--only=FedAvg, seed 1"]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert "FedAvg, seed 1 (model.lr: not set -> 0.5)" in error
    assert "--rerun" in error
    assert main([*words, "--rerun", "--dry-run"]) == 0
    assert "to be run again" in capsys.readouterr().out


def test_an_old_run_is_moved_and_not_reported(make_run, tmp_path):
    make_run("FedAvg", 0)
    make_run("FedAvg", 1)
    folder = tmp_path / "runs" / "FedAvg" / "seed_1"
    moved = archive(PlannedRun("FedAvg", {}, 1, folder, {}), tmp_path)
    assert not folder.exists()
    assert moved.relative_to(tmp_path).parts[0] == "replaced"
    assert len(list(moved.rglob("clients.csv"))) == 1
    assert [run.seed for run in collect([tmp_path]).runs] == [0]
    assert [path.parts[-4] for path in find_runs([tmp_path])] == ["FedAvg"]
    for given in (tmp_path / "replaced", moved):  # asked about it
        assert [run.seed for run in collect([given]).runs] == [1]
        assert len(list(find_runs([given]))) == 1


@pytest.mark.parametrize("name", ["influence", "replaced", "personalized"])
def test_a_study_or_variant_may_be_called_as_what_is_left_out(make_run, tmp_path, name):
    run = make_run(name, algorithm="FedAvg")
    replay = run / "influence" / "without_3" / "lightning_logs" / "version_0"
    shutil.copytree(run, replay)
    assert find_run_folders([tmp_path]) == list(find_runs([tmp_path])) == [run]
    study = tmp_path / name / name
    study.mkdir(parents=True)
    (tmp_path / "runs").rename(study / "runs")
    there = study / run.relative_to(tmp_path)
    assert find_run_folders([tmp_path]) == list(find_runs([tmp_path])) == [there]
    assert find_run_folders([there / "influence"]) == [there / replay.relative_to(run)]


def test_a_run_that_fails_stops_no_other_and_is_named(study, tmp_path, capsys):
    text = STUDY.replace("seeds: 2", "seeds: 1").replace("max_epochs: 6", "max_epochs: 1")
    variants = "variants:\n  FedAvg: FedAvg\n  broken: {trainer.callbacks+: slow.Breaks}"
    study.write_text(text.replace("variants: [FedAvg, FedBABU]", variants))
    assert main(["compare", "study.yaml"]) == 5
    captured = capsys.readouterr()
    (line,) = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert "1 of 2 runs failed: broken, seed 0: " in line
    assert "my own mistake" in line
    assert "[1/2] FedAvg, seed 0: done" in captured.out
    found = states(tmp_path / "out")
    assert (found["FedAvg/seed_0"]["state"], found["broken/seed_0"]["state"]) == ("done", "failed")
    assert (tmp_path / "out" / "report.html").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "compare expects one study file"),
        (["none.yaml"], "config none.yaml not found"),
        (["study.yaml", "--worker=2"], "Did you mean 'workers'"),
        (["study.yaml", "--workers=0"], "workers must be an integer"),
        (["study.yaml", "--only=X"], "--only=X matches no run"),
        (["study.yaml", "--federation.cohort_sise=3"], "Did you mean 'federation.cohort_size'"),
        (["study.yaml", "--federation.algorithm=FedBabu"], "Did you mean 'FedBABU'"),
        (["study.yaml", "--trainer.logger=false"], "leaves nothing to compare"),
        (["study.yaml", "--data.num_clients=0"], "FedAvg: data.num_clients"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_made(study, tmp_path, words, message, capsys):
    before = sorted(tmp_path.iterdir())
    assert main(["compare", *words]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert len([line for line in error.splitlines() if line.startswith("error: ")]) == 1
    assert [path for path in sorted(tmp_path.iterdir()) if path.name != "__pycache__"] == before


def test_a_second_command_is_kept_out(study, tmp_path, capsys):
    with study_lock(tmp_path / "out"):
        assert main(["compare", "study.yaml"]) == 6
    assert "another compare, or a run that one has left" in capsys.readouterr().err


def test_fit_says_that_a_study_is_for_compare(study, capsys):
    assert main(["fit", "--config", "study.yaml"]) == 2
    assert "python -m fedlightning compare --config study.yaml" in capsys.readouterr().err


def test_the_study_that_comes_along_would_be_accepted(tmp_path, capsys):
    assert main(["compare", "--config", "studies/digits.yaml", "--dry-run"]) == 0
    assert "12 runs (2 variants" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def _cohorts(folder):
    lines = (folder / "rounds.csv").read_text().splitlines()
    return [(line.split(",")[0], line.split(",")[3]) for line in lines]
