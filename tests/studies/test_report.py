import csv
import math
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from fedlightning.__main__ import main
from fedlightning.errors import ConfigError, DataError
from fedlightning.studies.results import collect
from fedlightning.studies.run_reader import read_run

VOID = {"meta", "br"}


class Page(HTMLParser):
    """Notes what a page loads, and whether its elements are closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.loads, self.tags = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "data") and tag != "a":
                self.loads.append(value)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def rows(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def study(make_run, tmp_path):
    """Three variants, two seeds, two conditions."""
    for condition in ("cohort_size=10", "cohort_size=5"):
        for at, name in enumerate(("FedAvg", "FedBABU", "FedProx <&>")):
            for seed in (0, 1):
                values = [0.3 + 0.05 * at + 0.02 * client for client in range(12)]
                make_run(
                    name, seed, values, condition=condition, held_out=values[:3],
                    algorithm=name[:7], metrics="round,train/loss,global/acc,"
                    "communication/bytes_up,communication/bytes_down\n0,2,0.2,10,10\n1,1,0.3,10,20\n",
                )  # fmt: skip
    return tmp_path


def test_the_page_needs_nothing_from_outside_and_is_well_formed(study, capsys):
    assert main(["report", str(study)]) == 0
    text = (study / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    assert all(value.startswith(("#", "data:")) for value in page.loads)
    assert "script" not in page.tags
    assert "link" not in page.tags
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)
    assert page.tags.count("svg") == 2 * 6 + 2, "six a condition, one of all, one of the partition"
    assert "FedProx &lt;&amp;&gt;" in text
    assert "FedProx <&>" not in text
    assert text.index('id="c0">cohort_size=5') < text.index('id="c1">cohort_size=10')
    assert f"report: {study / 'report.html'}" in capsys.readouterr().out


def test_the_same_runs_give_the_same_page(make_run, tmp_path):
    make_run("FedAvg")
    main(["report", str(tmp_path)])
    first = (tmp_path / "report.html").read_bytes()
    main(["report", str(tmp_path)])
    assert (tmp_path / "report.html").read_bytes() == first


def test_neither_torch_nor_lightning_is_needed_for_a_report():
    source = (
        "import sys, fedlightning.studies.report_command, fedlightning.studies.compare_command; "
        "print('torch' in sys.modules, 'pytorch_lightning' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout.split() == ["False", "False"]


def test_the_tables(study):
    assert main(["report", str(study), "--baseline=FedAvg"]) == 0
    summary = rows(study / "summary.csv")
    assert len(summary) == 2 * 3 * 2, "conditions, variants, seen and held out"
    assert {row["group"] for row in summary} == {"seen", "held_out"}
    clients = rows(study / "clients.csv")
    assert len(clients) == 2 * 3 * 2 * (12 + 3)
    assert {"acc_before", "acc_after", "num_train", "loss_after"} <= set(clients[0])
    curves = rows(study / "curves.csv")
    assert len(curves) == 2 * 3 * 2 * 2
    assert [row["cumulative/bytes"] for row in curves[:2]] == ["20.0", "50.0"]
    assert [row["cumulative/seconds"] for row in curves[:2]] == ["0.5", "1.0"]
    tests = rows(study / "tests.csv")
    assert {row["other"] for row in tests if row["family"] == "baseline"} == {"FedAvg"}
    assert len(tests) == 2 * (2 + 3)


def test_runs_that_no_study_knows_go_by_algorithm_and_what_sets_them_apart(make_run, tmp_path):
    make_run("FedAvg", in_study=False)
    make_run("a", algorithm="FedBABU", in_study=False, settings={"precision": 16})
    make_run("b", algorithm="FedBABU", in_study=False, settings={"precision": 32})
    assert collect([tmp_path]).variants == [
        "FedAvg",
        "FedBABU (precision=16)",
        "FedBABU (precision=32)",
    ]


def test_what_is_left_out_is_named(make_run, tmp_path, capsys):
    make_run("FedAvg")
    make_run("FedBABU", state="failed")
    make_run("FedPer", in_study=False, metrics="round,train/loss\n0,1.0\n")
    broken = make_run("FedRep")
    (broken / "clients.csv").write_text("nonsense\n")
    assert main(["report", str(tmp_path)]) == 0
    error = capsys.readouterr().err
    assert "left out, not finished" in error
    assert "1 of 2 rounds" in error
    assert "left out, cannot be read" in error
    assert collect([tmp_path]).variants == ["FedAvg"]
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "There is one variant only" in text
    assert "1 of 2 rounds" in text


@pytest.mark.parametrize(
    "callbacks",
    [
        ["EarlyStopping"],
        "EarlyStopping",
        {"class_path": "pytorch_lightning.callbacks.EarlyStopping"},
        [{"class_path": "Timer"}, {"class_path": "Timer"}],
    ],
)
def test_a_run_that_a_callback_may_end_is_finished_however_it_is_given(make_run, callbacks):
    folder = make_run("FedAvg", in_study=False, settings={"max_epochs": 9, "callbacks": callbacks})
    assert read_run(folder).unfinished == ""
    folder = make_run("FedBN", in_study=False, settings={"max_epochs": 9, "callbacks": "Slow"})
    assert read_run(folder).unfinished == "2 of 9 rounds"


def test_personalizing_a_run_again_makes_no_rival_of_it(make_run, tmp_path, capsys):
    again = "round,initial/acc,held_out/personalized/acc\n0,0.5,0.9\n"
    make_run("FedPer", in_study=False)
    make_run("python", algorithm="FedPer", in_study=False, settings={"max_epochs": 1},
             after=(0.9,), metrics=again)  # fmt: skip
    make_run("command", algorithm="FedPer", in_study=False, after=(0.9,), metrics=again)
    assert main(["report", str(tmp_path)]) == 0
    error = capsys.readouterr().err
    assert error.count("left out, of personalize") == 2
    assert "not finished" not in error
    (row,) = rows(tmp_path / "summary.csv")
    assert (row["variant"], row["seeds"], row["acc_after"]) == ("FedPer", "1", "0.625")


def test_runs_without_clients_are_reported_by_their_global_model(make_run, tmp_path, capsys):
    make_run("FedAvg", clients=False)
    make_run("FedBABU", clients=False)
    assert main(["report", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"global model\nFedAvg +50\.0\nFedBABU +50\.0\n", shown), shown
    assert [row["global_acc"] for row in rows(tmp_path / "summary.csv")] == ["0.5", "0.5"]
    assert rows(tmp_path / "tests.csv") == []
    assert any("no PersonalizationCallback" in text for text in collect([tmp_path]).warnings)


def test_different_cohorts_missing_seeds_and_versions_are_flagged(make_run, tmp_path):
    make_run("FedAvg", 0)
    make_run("FedAvg", 1)
    make_run("FedBABU", 0, cohorts=(11, 23))
    warnings = collect([tmp_path]).warnings
    assert any("seed 0: different cohorts" in text for text in warnings)
    assert "FedBABU has no run with seed 1" in warnings


def test_two_runs_of_one_seed(make_run, tmp_path):
    make_run("FedAvg", 0)
    other = tmp_path / "again"
    (tmp_path / "runs").rename(other)
    make_run("FedAvg", 0)
    collection = collect([tmp_path])
    assert len(collection.runs) == 1
    assert any("the newer one counts" in text for text in collection.warnings)


def test_clients_without_test_data_do_not_count(make_run, tmp_path):
    make_run("FedAvg", 0, [0.5, math.nan])
    (run,) = collect([tmp_path]).runs
    assert run.values("acc_after").tolist() == [0.5]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "report expects folders"),
        (["nowhere"], "nowhere: no such folder"),
        ([".", "--baselin=x"], "Did you mean 'baseline'"),
        ([".", "--metric=loss"], "--metric=loss must be one of"),
        ([".", "--trainer.max_epochs=2"], "report changes no settings"),
    ],
)
def test_bad_commands(words, message, capsys, tmp_path):
    assert main(["report", *words]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_runs(tmp_path):
    with pytest.raises(DataError, match="no finished run in"):
        collect([tmp_path])
    with pytest.raises(ConfigError, match="no such folder"):
        collect([tmp_path / "x"])


def test_an_unknown_baseline_is_answered_with_the_nearest_name(study, capsys):
    assert main(["report", str(study), "--baseline=FedBabu"]) == 2
    assert "Did you mean 'FedBABU'" in capsys.readouterr().err
