"""The runner of experiments: what it finds, what it prints, how it ends."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
MET = {
    "fedres": {"ours": 0.81, "fedavg": 0.70, "local": 0.79},
    "ids": {"share better": 0.9},
    "influence": {
        "ours": 0.95, "ours, perceptron": 0.9, "AUROC of bad clients": 1.0, "truncated": 0.5,
        "truncated, perceptron": 0.6,
    },
    "pfedhr": {"ours": 0.70, "candidates with new weights": 0.60},
    "persafl": {"ours": 6.5, "A: ratio": 5.5, "C: ratio": 6.0},
    "fedvi": {
        "ours": 0.88, "fedavg": 0.80, "fedavg, fine-tuned": 0.885, "another client's support": 0.7,
        "divergence from the prior": 5.0, "ours, swapped labels": 0.8,
        "fedavg, swapped labels": 0.4, "another client's support, swapped labels": 0.3,
    },
}  # fmt: skip


@pytest.fixture
def effects(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("effects")


@pytest.fixture
def effects_of(effects):
    return importlib.import_module("effects_of")


@pytest.mark.parametrize("system", MET)
def test_demands_hold_where_all_are_met_and_not_where_one_is_missed(system, effects_of):
    assert system in effects_of.systems()
    experiment = effects_of.load(system)
    met = [MET[system], MET[system]]
    assert all(demand.holds for demand in experiment.demands(met))
    missed = [{**MET[system], "ours": 0.1, "share better": 0.4}] * 2
    assert not all(demand.holds for demand in experiment.demands(missed))


def test_helpers_are_no_systems(effects_of):
    assert not [name for name in effects_of.systems() if name.startswith("_")]


@pytest.mark.parametrize(("gain", "code"), [(0.3, 0), (0.05, 1)])
def test_the_last_line_is_json_and_the_exit_code_the_verdict(
    gain, code, effects, effects_of, monkeypatch, capsys
):
    def demands(measured):
        mean = sum(one["ours"] - one["fedavg"] for one in measured) / len(measured)
        return [effects_of.Demand("gain", mean, 0.1), effects_of.Demand("other", 1.0, 0.0)]

    stub = SimpleNamespace(
        measure=lambda seed: {"ours": 0.5 + gain + seed, "fedavg": 0.5 + seed}, demands=demands
    )
    monkeypatch.setattr(effects_of, "load", lambda system: stub)
    monkeypatch.setattr("sys.argv", ["effects.py", "fedres", "--seeds", "3", "5", "--jobs", "1"])
    assert effects.main() == code
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert line["system"] == "fedres"
    assert line["seeds"] == [3, 5]
    assert line["ours"] == pytest.approx([3.5 + gain, 5.5 + gain])
    assert line["baselines"] == {"fedavg": [3.5, 5.5]}
    assert (line["effect"], line["threshold"]) == (pytest.approx(gain), 0.1)
    assert line["holds"] == (code == 0)
    assert [demand["holds"] for demand in line["demands"]] == [code == 0, True]
