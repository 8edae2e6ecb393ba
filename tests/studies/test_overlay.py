import pytest

from fedlightning.cli.config.overrides import apply_overrides, settings_in
from fedlightning.errors import ConfigError

BASE = {
    "data": {
        "class_path": "Digits",
        "init_args": {"num_clients": 20, "partition": {"class_path": "Shards"}},
    },
    "federation": {"algorithm": {"class_path": "FedBABU", "init_args": {"weights": "uniform"}}},
    "trainer": {
        "callbacks": [
            {"class_path": "PersonalizationCallback", "init_args": {"epochs": 5}},
            "Timer",
        ]
    },
}


def test_a_setting_of_a_class_needs_no_init_args_and_keeps_the_others():
    laid = apply_overrides(BASE, {"data.num_clients": 5, "data.partition.per_client": 3})
    assert laid["data"]["init_args"] == {
        "num_clients": 5,
        "partition": {"class_path": "Shards", "init_args": {"per_client": 3}},
    }


def test_nested_and_dotted_keys_mean_the_same():
    nested = apply_overrides(
        BASE, {"federation": {"algorithm": {"weights": "examples"}, "seed": 1}}
    )
    dotted = apply_overrides(
        BASE, {"federation.algorithm.weights": "examples", "federation.seed": 1}
    )
    assert nested == dotted


def test_a_class_named_anew_begins_with_settings_of_its_own():
    laid = apply_overrides(BASE, {"federation.algorithm": "FedAvg"})
    assert laid["federation"]["algorithm"] == "FedAvg"
    full = {"class_path": "FedProx", "init_args": {"mu": 0.1}}
    assert apply_overrides(BASE, {"federation.algorithm": full})["federation"]["algorithm"] == full


def test_a_bare_class_name_can_be_given_settings():
    base = {"federation": {"algorithm": "FedProx"}}
    laid = apply_overrides(base, {"federation.algorithm.mu": 0.5})
    assert laid["federation"]["algorithm"] == {"class_path": "FedProx", "init_args": {"mu": 0.5}}


def test_callbacks_go_by_their_class():
    key = "trainer.callbacks.PersonalizationCallback"
    laid = apply_overrides(BASE, {f"{key}.epochs": 9, key: {"part": "full"}})
    assert laid["trainer"]["callbacks"][0]["init_args"] == {"epochs": 9, "part": "full"}
    assert apply_overrides(BASE, {key: None})["trainer"]["callbacks"] == ["Timer"]
    more = apply_overrides(BASE, {"trainer.callbacks+": {"class_path": "EarlyStopping"}})
    assert [*BASE["trainer"]["callbacks"], {"class_path": "EarlyStopping"}] == (
        more["trainer"]["callbacks"]
    )


def test_a_callback_that_is_not_there_is_answered_with_the_nearest_name():
    with pytest.raises(ConfigError, match="Did you mean 'PersonalizationCallback'"):
        apply_overrides(BASE, {"trainer.callbacks.PersonalisationCallback.epochs": 9})


def test_a_number_has_no_settings():
    with pytest.raises(ConfigError, match="num_clients is 20, which has no settings"):
        apply_overrides(BASE, {"data.num_clients.x": 1})


def test_the_config_laid_over_stays_as_it_was():
    before = repr(BASE)
    apply_overrides(BASE, {"data.num_clients": 1, "trainer.callbacks.Timer.duration": 3})
    assert repr(BASE) == before


def test_two_items_of_one_class_do_not_hide_each_other():
    two = {"callbacks": [{"class_path": "A", "x": 1}, {"class_path": "A", "x": 2}]}
    assert settings_in(two) == two
