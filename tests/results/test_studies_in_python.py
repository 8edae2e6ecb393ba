"""`Study`: what ``compare`` does, in Python."""

from __future__ import annotations

import html
import sys

import numpy as np
import pytest
import torch
import yaml

from fedlightning import FedAvg, FedBABU, Federation, FedProx, PersonalizationCallback, Run, Study
from fedlightning.__main__ import main
from fedlightning.core.seeding import Key, forked_generators
from fedlightning.datamodules import ClientDatasets, Digits, Shards
from fedlightning.errors import ConfigError, EnvironmentFailure
from fedlightning.models import MLP
from fedlightning.studies.plan import plan
from fedlightning.studies.run_state import RunState, begin, state_of
from fedlightning.studies.runner import RunOutcomes
from fedlightning.studies.study import read_study
from tests.toys import examples

BY_HAND = """
title: two
output: out
base:
  model: {class_path: fedlightning.models.MLP, init_args: {in_features: 64, hidden: [4]}}
  data:
    class_path: fedlightning.datamodules.Digits
    init_args:
      num_clients: 10
      batch_size: 100
      partition: {class_path: fedlightning.datamodules.Shards, init_args: {per_client: 2}}
  federation: {cohort_size: 2}
  trainer:
    max_epochs: 2
    enable_model_summary: false
    callbacks: [{class_path: fedlightning.PersonalizationCallback, init_args: {epochs: 1}}]
seeds: [0]
variants: [FedAvg, FedBABU]
"""


def two(**settings):
    base = {
        "model": MLP(64, hidden=[4]),
        "data": Digits(num_clients=10, batch_size=100, partition=Shards(2)),
        "federation": Federation(cohort_size=2),
        "trainer": {
            "max_epochs": 2,
            "enable_model_summary": False,
            "callbacks": [PersonalizationCallback(epochs=1)],
        },
    }
    given = {"seeds": [0], "output": "out", "title": "two", **settings}
    return Study(base, given.pop("variants", [FedAvg(), FedBABU()]), **given)


def test_a_study_of_objects_plans_the_runs_of_a_study_file(tmp_path):
    path = tmp_path / "two.yaml"
    path.write_text(BY_HAND)
    by_hand = plan(read_study(path))
    in_python = two()._planned
    assert [run.folder for run in in_python] == [run.folder for run in by_hand]
    assert [run.digest for run in in_python] == [run.digest for run in by_hand]


def test_the_study_file_that_it_writes_plans_the_same_runs(tmp_path):
    study = two(
        variants={"plain": FedAvg(), "prox": FedProx(mu=0.5), "long": {"model.lr": 0.25}},
        grid={"data.batch_size": [50, 100]},
        settings={"federation.local_epochs": 2},
        seeds=2,
    )
    (tmp_path / "study.yaml").write_bytes(study._source)
    again = plan(read_study(tmp_path / "study.yaml"))
    assert [(run.name, run.digest) for run in again] == [
        (run.name, run.digest) for run in study._planned
    ]
    assert len(again) == 3 * 2 * 2
    prox = next(run for run in again if run.variant == "prox")
    assert prox.config["federation"]["algorithm"]["init_args"] == {"mu": 0.5}
    assert prox.config["federation"]["local_epochs"] == 2


@pytest.mark.parametrize(
    ("seeds", "same"),
    [
        (np.arange(3), [0, 1, 2]),
        (np.int64(3), [0, 1, 2]),
        (torch.tensor([4, 2]), [4, 2]),
        (torch.tensor(2), [0, 1]),
        ([np.uint8(7), 5], [7, 5]),
        (range(1, 3), [1, 2]),
        ((seed for seed in (3, 9)), [3, 9]),
    ],
)
def test_seeds_and_workers_are_integers_of_any_kind(seeds, same):
    study = two(seeds=seeds, workers=np.int64(2))
    assert [run.seed for run in study._planned] == [seed for seed in same for _ in range(2)]
    written = yaml.safe_load(study._source)
    assert (written["seeds"], written["workers"]) == (same, 2)


@pytest.mark.parametrize(
    "seeds", ["012", {0: 1}, 2.0, np.float64(2), True, [True], [0.5], ["1"], np.ones(2), [],
              np.zeros((2, 2), int), 10**30, -1, [1, np.int64(1)]],
)  # fmt: skip
def test_what_is_no_integer_is_no_seed(seeds):
    with pytest.raises(ConfigError, match="seeds"):
        two(seeds=seeds)


@pytest.fixture
def one_process(monkeypatch):
    """Make runs in this process: others would import torch first."""

    def run_here(runs, *_):
        for run in runs:
            state, words = begin(run, state_of(run))
            with forked_generators(Key(0, "fit")):
                assert main(words) == 0
            state.ended(0, "done", 1.0, "").write(run.folder)
        return RunOutcomes(())

    monkeypatch.setattr("fedlightning.studies.execution.run_all", run_here)


def curves(folder):
    return [path.read_bytes() for path in sorted(folder.rglob("metrics.csv"))]


@pytest.mark.slow
def test_its_runs_have_the_bits_of_the_commands(tmp_path):
    two(workers=2).run()
    (tmp_path / "two.yaml").write_text(BY_HAND)
    words = ["compare", "--config", "two.yaml", "--output", "other", "--workers=2"]
    assert main(words) == 0
    assert curves(tmp_path / "other") == curves(tmp_path / "out")
    assert len(curves(tmp_path / "out")) == 2


@pytest.mark.usefixtures("one_process")
def test_it_runs_resumes_and_reports_as_the_command_does(tmp_path, capsys):
    study = two(workers=2)
    generator = torch.get_rng_state()
    frame = study.run()
    assert torch.equal(torch.get_rng_state(), generator)
    assert list(frame["variant"]) == ["FedAvg", "FedBABU"]
    assert "Seed set" not in "".join(capsys.readouterr())

    rows = (tmp_path / "out" / "summary.csv").read_text().splitlines()
    header = rows[0].split(",")
    assert list(frame.columns) == header
    assert frame["acc_after"][0] == float(rows[1].split(",")[header.index("acc_after")])

    # the same folder, taken up by the command: nothing is left to be run, and the same rows
    capsys.readouterr()
    assert main(["compare", "--config", "out/study.yaml", "--output", "out"]) == 0
    assert "2 done before" in capsys.readouterr().out
    assert (tmp_path / "out" / "summary.csv").read_text().splitlines() == rows

    # and by Python again
    read = Study.read("out")
    assert read.run().equals(frame)
    assert [run.algorithm for run in read.runs] == ["FedAvg", "FedBABU"]
    assert isinstance(read.runs[0], Run)
    folders = [run.folder for run in read.runs]
    read.runs[0].personalize(clients=[0])
    assert [run.folder for run in read.runs] == folders
    assert set(read.frame("clients")["variant"]) == {"FedAvg", "FedBABU"}
    assert "2 of 2 runs done" in read._repr_html_()
    assert f"{frame['acc_after'][1]:.3f}" in read._repr_html_()
    assert read.report().is_file()


def test_other_settings_in_the_same_folder_are_refused_unless_repeated(tmp_path, make_state):
    study = two()
    make_state(study, digest="another")
    with pytest.raises(ConfigError, match=r"in Python, rerun=True"):
        study.run()


@pytest.fixture
def make_state():
    """Write into a study's folder that all its runs are done."""

    def make(study, digest):
        for run in study._planned:
            run.folder.mkdir(parents=True)
            RunState(run.variant, {}, run.seed, digest, state="done").write(run.folder)

    return make


def test_objects_that_no_process_can_build_are_refused_at_once():
    clients = ClientDatasets(train=[examples(8, 0)], test=[examples(8, 1)], num_classes=3)
    with pytest.raises(ConfigError, match=r"base\.data\.train was a list of 1 tuple"):
        Study({"model": MLP(4), "data": clients}, [FedAvg()])


def test_what_is_wrong_is_said_before_anything_runs(tmp_path):
    with pytest.raises(ConfigError, match="Did you mean 'variants'"):
        Study(base="quickstart.yaml", variant=[FedAvg()])
    with pytest.raises(ConfigError, match=r"baseline 'FedAvgg' is not a variant.*'FedAvg'"):
        two(baseline="FedAvgg")
    with pytest.raises(ConfigError, match=r"no results yet; call run\(\)"):
        two().frame()
    assert not (tmp_path / "out").exists()


def test_without_pandas_nothing_is_run(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(EnvironmentFailure, match=r"pip install 'fedlightning\[table\]'"):
        two().run()
    assert not (tmp_path / "out").exists()


def test_names_of_variants_cannot_write_into_a_page(tmp_path):
    evil = "<script>alert(1)<script>"
    study = two(variants={evil: FedAvg()}, title="<b>")
    study.folder.mkdir()
    (study.folder / "summary.csv").write_text(f"group,variant,acc_after\nseen,{evil},0.5\n")
    page = study._repr_html_()
    assert evil not in page
    assert html.escape(evil) in page
    assert "<b>" not in page


@pytest.mark.parametrize(
    ("columns", "shown", "hidden"),
    [
        ("loss_before,loss_after,global_loss\n{},1.5,1.25,1.75\n", ["1.500", "1.250", "1.750"], []),
        ("mae_before,mae_after,global_mae\n{},nan,nan,2.5\n", ["2.500"], ["mae before"]),
    ],
)  # fmt: skip
def test_the_page_has_the_numbers_of_whatever_metric_counts(tmp_path, columns, shown, hidden):
    study = two()
    study.folder.mkdir()
    (study.folder / "summary.csv").write_text("variant," + columns.format("FedAvg"))
    page = study._repr_html_()
    assert all(f">{number}<" in page for number in shown)
    assert not any(heading in page for heading in hidden)


def test_a_config_file_as_base_is_found_from_the_studys_folder(tmp_path):
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(yaml.safe_load(BY_HAND)["base"]))
    study = Study("mine.yaml", [FedAvg()], output="deep/out")
    study.folder.mkdir(parents=True)
    (study.folder / "study.yaml").write_bytes(study._source)
    assert Study.read(study.folder)._planned == study._planned
