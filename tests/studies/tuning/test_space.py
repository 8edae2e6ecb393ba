import pytest

from fedlightning.errors import ConfigError
from fedlightning.studies.study import Study
from fedlightning.studies.tuning.settings import read_tuning
from fedlightning.studies.tuning.space import Choice, Range, Whole, read_dimension


class Middle:
    """A trial that takes what lies in the middle."""

    def suggest_float(self, name, low, high, *, step, log):
        return (low * high) ** 0.5 if log else (low + high) / 2

    def suggest_int(self, name, low, high, *, step, log):
        return low + (high - low) // (2 * step) * step

    def suggest_categorical(self, name, choices):
        return choices[len(choices) // 2]


@pytest.mark.parametrize(
    ("given", "expected", "middle"),
    [
        ({"low": 0.01, "high": 1, "log": True}, Range(0.01, 1.0, True), 0.1),
        ({"low": 0, "high": 1, "type": "float"}, Range(0.0, 1.0), 0.5),
        ({"low": 0.0, "high": 1.0, "step": 0.25}, Range(0.0, 1.0, step=0.25), 0.5),
        ({"low": 2, "high": 10, "step": 4}, Whole(2, 10, step=4), 6),
        ({"low": 1, "high": 64, "log": True}, Whole(1, 64, True), 32),
        ([1, None, "a"], Choice((1, None, "a")), None),
        (
            ["FedAvg", {"class_path": "FedProx", "init_args": {"mu": 0.1}}],
            Choice(("FedAvg", {"class_path": "FedProx", "init_args": {"mu": 0.1}})),
            {"class_path": "FedProx", "init_args": {"mu": 0.1}},
        ),
    ],
)
def test_what_can_be_searched(given, expected, middle):
    found = read_dimension("space.x", given)
    assert found == expected
    assert found.suggest(Middle(), "x") == middle


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (3, "space.x must be a list of values, or a range"),
        ({"low": 1}, "space.x must be a list of values, or a range"),
        ({"low": 1, "high": 2, "logg": True}, "no key 'logg'. Did you mean 'log'"),
        ({"low": 2, "high": 2}, "low must be below high, got 2 and 2"),
        ({"low": 0, "high": 2, "log": True}, "space.x.low must be above 0 with log: true"),
        ({"low": 1, "high": 2, "log": "yes"}, "space.x.log must be true or false"),
        ({"low": "a", "high": 2}, "space.x.low must be a number, got 'a'"),
        ({"low": 0.5, "high": 2, "type": "int"}, "space.x.low must be an integer"),
        ({"low": 1, "high": 2, "type": "real"}, "space.x.type must be float or int, got 'real'"),
        ({"low": 1, "high": 9, "log": True, "step": 2}, "log and step exclude each other"),
        ([1], "leaves no choice"),
        ([1, 1], "has duplicates"),
    ],
)
def test_what_cannot(given, message):
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        read_dimension("space.x", given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "tune expects a study file with tune"),
        ({"trails": 3, "space": {"a": [1, 2]}}, "no key 'trails'. Did you mean 'trials'"),
        ({"trials": 0, "space": {"a": [1, 2]}}, "tune.trials must be an integer >= 1"),
        ({"pruner": "medium", "space": {"a": [1, 2]}}, "Did you mean 'median'"),
        ({"trials": 3}, "nothing is searched for FedAvg, FedProx"),
        ({"variants": {"FedProx": {"a": [1, 2]}}}, "nothing is searched for FedAvg; add settings"),
        ({"variants": {"FedProks": {"a": [1, 2]}}}, "'FedProks' is not a variant. Did you mean"),
        ({"space": [1]}, "tune.space must be a mapping"),
    ],
)
def test_a_tune_section_that_is_refused(given, message, tmp_path):
    study = Study("s", tmp_path, {}, {"FedAvg": {}, "FedProx": {}})
    with pytest.raises(ConfigError, match=message):
        read_tuning(study, given)


def test_a_variant_searches_the_common_space_and_its_own(tmp_path):
    study = Study("s", tmp_path / "s", {}, {"A": {}, "B": {}}, seeds=(4, 5))
    tuning = read_tuning(
        study, {"space": {"lr": [1, 2]}, "variants": {"B": {"mu": [3, 4], "lr": [5, 6]}}}, 20
    )
    assert tuning.spaces == {
        "A": {"lr": Choice((1, 2))},
        "B": {"lr": Choice((5, 6)), "mu": Choice((3, 4))},
    }
    assert (tuning.run_seed, tuning.trials, tuning.warmup_rounds) == (4, 20, 5)
    assert tuning.output == tmp_path / "s_tuning"
