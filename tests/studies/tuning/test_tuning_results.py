"""What is chosen from the records of trials, without running any."""

import csv
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("optuna", reason="needs the extra tune")

from fedlightning import PersonalizationCallback
from fedlightning.cli.terminal import quiet
from fedlightning.errors import ConfigError, EnvironmentFailure
from fedlightning.studies.run_state import state_of
from fedlightning.studies.study import Study
from fedlightning.studies.tuning.results import budget_lines, results_of, write_results
from fedlightning.studies.tuning.search import Search
from fedlightning.studies.tuning.settings import Tuning
from fedlightning.studies.tuning.space import Choice, Range, Whole
from fedlightning.studies.tuning.trials import check_trials, is_personal, trial_run
from fedlightning.studies.tuning.validation_values import read_values

BASE = {
    "model": {"class_path": "MLP", "init_args": {"hidden": [4]}},
    "data": {"class_path": "Digits", "init_args": {"num_clients": 4, "val_fraction": 0.3}},
    "federation": {"algorithm": "FedAvg", "cohort_size": 2, "main_metric": "mse"},
    "trainer": {"max_epochs": 4},
}
SPACE = {
    "model.lr": Range(1e-4, 1.0, log=True),
    "model.momentum": Range(0.0, 0.9),
    "federation.local_epochs": Whole(1, 9),
    "federation.algorithm.weights": Choice(("uniform", "examples")),
}


class Mine(PersonalizationCallback):
    """Has the settings of the class above."""


class Fixed(PersonalizationCallback):
    """Cannot be told when it personalizes."""

    def __init__(self, epochs: int = 1) -> None:
        super().__init__(epochs=epochs)


def study_of(tmp_path, callbacks=None, variants=("FedAvg",)):
    base = BASE | {"trainer": {"max_epochs": 4, "callbacks": callbacks}}
    return Study("s", tmp_path / "out", base, {name: {} for name in variants}, seeds=(0, 1))


def tuning_of(tmp_path, variants=("FedAvg",), **settings):
    return Tuning(tmp_path / "tuning", dict.fromkeys(variants, SPACE), **settings)


def search_of(tmp_path, personal=None, callbacks=None, **settings):
    study, tuning = study_of(tmp_path, callbacks), tuning_of(tmp_path, **settings)
    return Search(study, tuning, {}, {"FedAvg": personal or {}})


def end(search, run, table="", error="", exit_code=0):
    """Tell a search of a trial's end; its table lacks the column of rounds."""
    folder = run.folder / "lightning_logs" / "version_0"
    folder.mkdir(parents=True)
    header, *rows = table.split()
    lines = [f"round,{header}", *(f"{number},{row}" for number, row in enumerate(rows))]
    (folder / "metrics.csv").write_text("".join(f"{line}\n" for line in lines))
    state_of(run).ended(exit_code, "failed" if error else "done", 1.0, error).write(run.folder)
    return search.ended(run, error, "", False)


def record(number, state, steps, **facts):
    """Return what optuna keeps of a trial, with scores of which more is better."""
    value = steps[max(steps)] if state == "COMPLETE" else None
    return SimpleNamespace(
        number=number,
        state=SimpleNamespace(name=state),
        intermediate_values=steps,
        value=value,
        user_attrs={"settings": {"model.lr": number}, **facts},
    )


def test_trials_that_measured_nothing_do_not_turn_the_choice_around(tmp_path):
    empty = read_values(tmp_path, personal=False)
    unknown = {"metric": empty.column, "sign": empty.metric.sign}
    assert unknown == {"metric": "", "sign": 1}, "without a table, accuracy is taken to count"
    of_mae = {"metric": "val/mae", "sign": -1}
    records = [
        record(0, "FAIL", {}, error="it diverged", **unknown),
        record(1, "RUNNING", {1: -3.0}),
        record(2, "COMPLETE", {1: -6.0, 2: -5.0}, **of_mae),
        record(3, "COMPLETE", {1: -6.0, 2: -2.0}, **of_mae),
        record(4, "FAIL", {}, error="it diverged", **unknown),
    ]
    search = SimpleNamespace(
        tuning=SimpleNamespace(spaces={"FedAvg": {}}, output=Path("out")),
        trials=lambda _: records,
    )
    found = results_of(search)
    assert (found.metric, found.mode) == ("val/mae", "min")
    assert [trial.value for trial in found.trials[1:4]] == [3.0, 5.0, 2.0]
    assert (found.best("FedAvg").number, found.chosen) == (3, {"FedAvg": {"model.lr": 3}})


# -- what has diverged ---------------------------------------------------------------------------


def test_a_trial_that_has_diverged_is_not_chosen_by_what_it_was_before(tmp_path):
    search = search_of(
        tmp_path, {"PersonalizationCallback": False}, ["PersonalizationCallback"],
        trials=4, pruner="none",
    )  # fmt: skip
    column = "personalized/val_mse"
    tables = [
        f"{column} 0.9 0.4 nan nan",  # at all clients
        f"{column},{column}_undefined 0.9, 0.8, 0.2,2 0.1,2",  # at two of four
        f"{column},{column}_undefined 0.9, 0.8, 0.7,1 0.6,",
        f"{column} 0.9 0.8 0.7 0.65",
    ]
    runs = search.runs()
    said = [end(search, next(runs), table) for table in tables]
    assert said[0].startswith(f"FAILED: {column} is undefined after round 4")
    found = results_of(search)
    assert [trial.state for trial in found.trials] == ["failed", *["complete"] * 3]
    assert math.isnan(found.trials[0].value)
    assert [trial.value for trial in found.trials[1:]] == [0.1, 0.6, 0.65]
    assert [trial.undefined for trial in found.trials[1:]] == [2, 0, 0]
    assert (found.metric, found.mode, found.best("FedAvg").number) == (column, "min", 2)
    assert found.chosen["FedAvg"] == found.trials[2].settings
    write_results(search, {}, found)
    with (tmp_path / "tuning" / "trials.csv").open() as file:
        cells = [(row[column], row["undefined"]) for row in csv.DictReader(file)]
    assert cells == [("", "0"), ("0.1", "2"), ("0.6", "0"), ("0.65", "0")]

    # where clients are undefined in all trials, the best of those with the fewest
    several = replace(found, trials=[replace(t, undefined=t.undefined + 1) for t in found.trials])
    assert several.best("FedAvg").number == 2
    (line,) = budget_lines(several)
    assert line.endswith("best 0.6 in trial 2, undefined at 1 clients")


@pytest.mark.parametrize("pruner", ["median", "hyperband"])
def test_no_trial_ends_well_by_a_value_that_is_undefined(tmp_path, pruner):
    search = search_of(tmp_path, trials=3, pruner=pruner, startup_trials=1)
    runs = search.runs()
    for table in ("val/mse 0.9 0.8 0.7 0.6", "val/mse nan nan nan nan", "val/mse 0.1 nan nan nan"):
        end(search, next(runs), table)
    found = results_of(search)
    assert found.trials[0].state == "complete"
    assert {trial.state for trial in found.trials[1:]} <= {"stopped", "failed"}
    assert found.best("FedAvg").number == 0


# -- what a kill or a full disk leaves to do -----------------------------------------------------


class Killed(BaseException):
    """Stands for a signal that ends the search at once."""


def drawn(tmp_path, monkeypatch, kill_after=None):
    """Return the settings of five trials, each begun by a new search, and perhaps by two."""
    settings = []
    for _ in range(5):
        if kill_after is not None:
            count = [0]

            def killed(suggest, count=count):
                def counted(self, trial, key):
                    if count[0] == kill_after:
                        raise Killed
                    count[0] += 1
                    return suggest(self, trial, key)

                return counted

            with monkeypatch.context() as patch:
                for kind in (Range, Whole, Choice):
                    patch.setattr(kind, "suggest", killed(kind.suggest))
                runs = search_of(tmp_path, trials=5, startup_trials=2).runs()
                with pytest.raises(Killed):
                    next(runs)
        search = search_of(tmp_path, trials=5, startup_trials=2)
        run = next(search.runs())
        found = search.trials("FedAvg")[-1].user_attrs["settings"]
        end(search, run, f"val/mse {found['model.lr'] + found['model.momentum']}")
        settings.append(found)
    return settings


@pytest.mark.parametrize("kill_after", [0, 1, 2, 3])
def test_values_that_a_kill_has_left_undrawn_are_drawn_as_they_would_have_been(
    tmp_path, monkeypatch, kill_after
):
    whole = drawn(tmp_path / "whole", monkeypatch)
    assert len({settings["model.lr"] for settings in whole}) == 5
    assert drawn(tmp_path / "killed", monkeypatch, kill_after) == whole


def test_a_trial_that_the_machine_has_failed_goes_on_when_there_is_room(tmp_path):
    search = search_of(tmp_path, trials=2)
    runs = search.runs()
    run = next(runs)
    error = "cannot write metrics.csv: no space left"
    assert end(search, run, "val/mse 0.5", error, EnvironmentFailure.exit_code) == ""
    assert search.refusal == error
    assert list(runs) == []
    again = search_of(tmp_path, trials=2)
    assert again.ended_trials() == 0
    assert next(again.runs()).config == run.config
    other = search_of(tmp_path / "other", trials=2)  # what its settings have failed has ended
    end(other, next(other.runs()), "val/mse 0.5", "it diverged", 5)
    assert (other.refusal, other.ended_trials()) == ("", 1)


def test_variants_whose_trials_would_share_folders_are_refused(tmp_path):
    names = ("FedProx 0.1", "FedProx_0.1")
    with pytest.raises(ConfigError, match=r"'FedProx 0\.1, trial 0.*'FedProx_0\.1.*share"):
        check_trials(study_of(tmp_path, None, names), tuning_of(tmp_path, names), {})


# -- which model counts --------------------------------------------------------------------------


@pytest.fixture
def as_on_the_command_line():
    with quiet():
        yield


OF_MINE = f"{Mine.__module__}.Mine"
STANDARD = "PersonalizationCallback"


@pytest.mark.usefixtures("as_on_the_command_line")
@pytest.mark.parametrize(
    ("callbacks", "every"),
    [
        (None, []),
        (["LearningRateMonitor"], []),
        ([STANDARD], [1]),
        (STANDARD, [1]),
        ({"class_path": STANDARD, "init_args": {"epochs": 1}}, [1]),
        ({"class_path": STANDARD, "init_args": {"every_n_rounds": 2}}, [2]),
        ([{"class_path": OF_MINE, "init_args": {"epochs": 1}}], [1]),
        ({"class_path": OF_MINE}, [1]),
        ([{"class_path": STANDARD, "init_args": {"every_n_rounds": 3}}, OF_MINE], [3, 1]),
    ],
)
def test_personalized_models_count_however_the_callback_is_given(tmp_path, callbacks, every):
    study, tuning = study_of(tmp_path, callbacks), tuning_of(tmp_path)
    personal = check_trials(study, tuning, {})
    run = trial_run(study, tuning, "FedAvg", 0, {}, {}, personal["FedAvg"])
    assert is_personal(run.config, personal["FedAvg"]) == bool(every)
    given = run.config["trainer"]["callbacks"]
    items = given if isinstance(given, list) else [given]
    said = [item["init_args"]["every_n_rounds"] for item in items if isinstance(item, dict)]
    assert said == every

    search = Search(study, tuning, {}, personal)
    run = next(search.runs())
    end(search, run, "val/mse,personalized/val_mse 0.5,0.4")
    assert results_of(search).metric == ("personalized/val_mse" if every else "val/mse")


@pytest.mark.usefixtures("as_on_the_command_line")
def test_a_callback_that_cannot_be_told_when_to_personalize_is_refused_for_stopping(tmp_path):
    study = study_of(tmp_path, [f"{Fixed.__module__}.Fixed"])
    with pytest.raises(ConfigError, match=r"every_n_rounds.*of Fixed.*tune\.pruner: none"):
        check_trials(study, tuning_of(tmp_path), {})
    found = check_trials(study, tuning_of(tmp_path, pruner="none"), {})
    assert found == {"FedAvg": {"Fixed": True}}
