import io
import math
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest

from fedlightning.core.statistics import Spread
from fedlightning.reporting.summary import RunSummary, ViewSummary, render
from fedlightning.reporting.terminal import bars

BEFORE = (0.25, 0.5, 0.75)
AFTER = (0.75, 1.0, 1.0)
SUMMARY = RunSummary(
    algorithm="FedBABU",
    rounds=80,
    clients=20,
    cohort_size=10,
    seconds=192.4,
    before=Spread.of(BEFORE),
    after=Spread.of(AFTER),
    nearest_mean_acc=0.875,
    part="head",
    folder=Path("runs/version_3"),
    files=("metrics.csv", "clients.csv", "checkpoints/last.ckpt"),
    before_values=BEFORE,
    after_values=AFTER,
)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_the_whole_text():
    rule = "─" * 80
    assert (
        render(SUMMARY, width=80, color=False)
        == f"""\
── FedBABU ────────────────────────────────────────────────── all rounds done ──

  80 rounds · 10 of 20 clients a round · 3 min 12 s

  accuracy on the clients' own test data             0 %            100 %
  before         50.0 %  ± 20.4  (min  25.0, p10  30.0)  ▕     ▄    ▄    ▄    ▏
  after (head)   91.7 %  ± 11.8  (min  75.0, p10  80.0)  ▕               ▄   █▏
  gain         +41.7 points
  nearest mean   87.5 %

  runs/version_3/
    metrics.csv            one row per round
    clients.csv            one row per client, before and after personalization
    checkpoints/last.ckpt  resume from last.ckpt with --ckpt_path

{rule}"""
    )


def test_plain_ascii_where_the_stream_has_no_box_drawing():
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    text = render(replace(SUMMARY, folder=Path("runs/größe")), 80, stream=stream)
    print(text, file=stream)
    assert text.isascii()
    assert "before         50.0 %  +-20.4  (min  25.0, p10  30.0)  |     =    =    =    |" in text
    assert r"runs/gr\xf6\xdfe" in text


@pytest.mark.parametrize("width", [40, 50, 57, 60, 70, 76, 77, 78, 79, 80, 120])
def test_no_line_is_wider_than_the_terminal(width):
    summary = replace(SUMMARY, files=(), global_acc=Spread.of([1.0]))
    lines = render(summary, width=width, color=False).splitlines()
    wide = [line for line in lines if len(line) > width and "of 20 clients" not in line]
    assert wide == []
    assert len(lines[0]) == len(lines[-1]) == width


def test_a_narrow_terminal_gets_no_histogram_and_then_no_spread():
    assert "▕" in render(SUMMARY, width=80)
    assert "▕" not in render(SUMMARY, width=70)
    assert "±" in render(SUMMARY, width=70)
    assert "±" not in render(SUMMARY, width=40)


def test_width_is_at_most_80_by_default(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert len(render(SUMMARY, color=False).splitlines()[0]) == 80
    monkeypatch.setenv("COLUMNS", "60")
    assert len(render(SUMMARY, color=False).splitlines()[0]) == 60


def test_colour_on_a_terminal_only(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    assert "\x1b[" in render(SUMMARY, stream=Terminal())
    assert "\x1b[" not in render(SUMMARY, stream=io.StringIO())


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_the_environment_turns_colour_off(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    assert "\x1b[" not in render(SUMMARY, stream=Terminal())


def test_colour_changes_no_character():
    colored = render(SUMMARY, color=True)
    assert re.sub(r"\x1b\[\d+m", "", colored) == render(SUMMARY, color=False)


def test_a_run_without_personalization_shows_the_global_model():
    summary = RunSummary("FedAvg", 1, 20, 20, 3.21, global_acc=Spread.of([0.5, 0.7]))
    text = render(summary, width=80, color=False)
    assert "1 round · all 20 clients a round · 3.2 s" in text
    assert "global model   60.0 %  ± 10.0" in text
    assert "gain" not in text
    assert "before" not in text


def test_ten_clients_have_a_worst_tenth():
    before, after = [0.1, *[0.5] * 9], [0.4, *[0.8] * 9]
    summary = replace(SUMMARY, before=Spread.of(before), after=Spread.of(after))
    line = "  worst tenth    40.0 %  (10.0 before; Jain's index 0.976, 0.936 before)"
    assert line in render(summary, width=80, color=False).splitlines()
    assert "  worst tenth    40.0 %" in render(summary, width=50, color=False).splitlines()
    alone = replace(summary, before=None, after=None, global_acc=Spread.of(after))
    assert "worst tenth    40.0 %  (Jain's index of fairness 0.976)" in render(alone, color=False)
    assert "worst tenth" not in render(SUMMARY, color=False)


def test_clients_held_out_of_training_are_told_apart():
    view = ViewSummary("held_out", "test", 2, Spread.of([0.25, 0.75]), Spread.of([1, 1]))
    summary = replace(SUMMARY, views=(view,))
    text = render(summary, width=80, color=False)
    assert (
        """
  accuracy on the test data of 2 clients held out of training
  before         50.0 %  ± 25.0  (min  25.0, p10  30.0)
  after (head)  100.0 %  ±  0.0  (min 100.0, p10 100.0)

"""
        in text
    )
    assert text.index("nearest mean") < text.index("held out") < text.index("runs/version_3")


def test_without_personalization_they_have_the_global_model():
    view = ViewSummary("held_out", "test", 1, Spread.of([0.5]))
    summary = RunSummary("FedAvg", 1, 20, 2, 1.0, views=(view,))
    text = render(summary, width=80, color=False)
    assert "test data of 1 client held out of training\n  global model   50.0 %" in text


def test_of_very_many_held_out_clients_those_evaluated_are_counted():
    view = ViewSummary("held_out", "test", 5000, Spread.of([0.5] * 3))
    text = render(replace(SUMMARY, views=(view,)))
    assert "accuracy of 3 of the 5,000 clients held out of training" in text


def test_every_view_has_its_lines():
    ood = ViewSummary("ood", "ood", 3, Spread.of([0.25, 0.5, 0.75]), Spread.of([0.5] * 3))
    ward = ViewSummary("ward", "test", 2, Spread.of([0.5, 1.0]))
    central = ViewSummary("central", "all", 0, Spread.of([0.625]))
    text = render(replace(SUMMARY, views=(ood, ward, central)), width=80, color=False)
    assert (
        """
  accuracy on the ood data of 3 clients
  before         50.0 %  ± 20.4  (min  25.0, p10  30.0)
  after (head)   50.0 %  ±  0.0  (min  50.0, p10  50.0)

  accuracy on the test data of 2 clients in the view ward
  global model   75.0 %  ± 25.0  (min  50.0, p10  55.0)

  accuracy on central data, which belongs to no client
  global model   62.5 %

"""
        in text
    )


def test_the_global_model_is_not_said_twice():
    assert "global model" not in render(replace(SUMMARY, global_acc=SUMMARY.before))
    assert "global model" in render(replace(SUMMARY, global_acc=Spread.of([0.1])))


def test_a_loss_is_a_negative_gain():
    assert "gain         -41.7 points" in render(
        replace(SUMMARY, before=SUMMARY.after, after=SUMMARY.before), color=False
    )


def test_clients_without_test_data_are_counted():
    after = Spread.of([*AFTER, math.nan])
    assert "1 client without test data left out" in render(replace(SUMMARY, after=after))


def test_clients_with_an_undefined_accuracy_are_told_from_those_without_test_data():
    after = Spread.of([*AFTER, math.nan, math.nan])
    text = render(replace(SUMMARY, after=after, untested=1), color=False)
    assert "1 client without test data left out\n" in text
    assert "1 client with an undefined accuracy left out\n" in text


def test_no_test_data_at_all_is_said_in_words():
    nobody = Spread.of([math.nan] * 3)
    text = render(replace(SUMMARY, before=nobody, after=nobody), color=False)
    assert "after (head)  no client has test data" in text
    assert "nan" not in text


def test_a_run_that_measured_nothing_has_no_accuracies():
    text = render(RunSummary("FedAvg", 3, 20, 5, 1.0, stopped="early stopping"), color=False)
    assert "accuracy" not in text
    assert "early stopping ──" in text


def test_a_folder_below_this_one_is_relative_and_any_other_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert f"\n  runs{os.sep}\n" in render(
        replace(SUMMARY, folder=tmp_path / "runs", files=()), color=False
    )
    elsewhere = tmp_path.parent
    assert f"\n  {elsewhere}{os.sep}\n" in render(
        replace(SUMMARY, folder=elsewhere, files=()), color=False
    )


def test_a_file_that_nobody_described_is_listed_without_words():
    text = render(replace(SUMMARY, files=("notes.txt", "a.tfevents.1")), color=False)
    assert "\n    notes.txt\n" in text
    assert "for tensorboard --logdir" in text


def test_one_client_among_many_shows_in_the_histogram():
    [drawn] = bars([[0.02] + [0.98] * 1000])
    assert drawn == "▁" + " " * 18 + "█"
