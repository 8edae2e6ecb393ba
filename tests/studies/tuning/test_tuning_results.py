"""What is chosen from the records of trials, without running any."""

from pathlib import Path
from types import SimpleNamespace

from fedlightning.studies.tuning.results import results_of
from fedlightning.studies.tuning.validation_values import read_values


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
