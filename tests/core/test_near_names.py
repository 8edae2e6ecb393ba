"""Names that are not there: ``from`` imports are answered, and other questions stay cheap."""

from __future__ import annotations

import importlib

import pytest

import fedlightning

PACKAGES = {
    "fedlightning": "FedBabu",
    "fedlightning.algorithms": "FedBabu",
    "fedlightning.algorithms.aggregation": "Krumm",
    "fedlightning.callbacks": "PersonalisationCallback",
    "fedlightning.datamodules": "Digit",
    "fedlightning.federation": "Federatoin",
    "fedlightning.federation.uplink": "ClipNrm",
    "fedlightning.models": "MPL",
    "fedlightning.privacy": "ClientDp",
    "fedlightning.results": "Studies",
}
MEANT = {
    "FedBabu": "FedBABU", "Krumm": "Krum", "PersonalisationCallback": "PersonalizationCallback",
    "Digit": "Digits", "Federatoin": "Federation", "ClipNrm": "ClipNorm", "MPL": "MLP",
    "ClientDp": "ClientDP", "Studies": "Study",
}  # fmt: skip


@pytest.mark.parametrize(("package", "name"), PACKAGES.items())
def test_an_import_names_what_was_meant(package, name):
    with pytest.raises(ImportError, match=f"Did you mean '{MEANT[name]}'") as error:
        exec(f"from {package} import {name}")
    assert error.value.name == name


def test_a_name_of_another_package_is_found_there():
    with pytest.raises(
        ImportError, match=r"'Digits' from 'fedlightning'\. It is in fedlightning\.d"
    ):
        from fedlightning import Digits  # noqa: F401


@pytest.mark.parametrize("package", PACKAGES)
def test_asking_for_a_name_that_is_not_there_is_no_import(package):
    module = importlib.import_module(package)
    assert not hasattr(module, PACKAGES[package])
    assert getattr(module, "__wrapped__", None) is None
    with pytest.raises(AttributeError, match="Did you mean"):
        getattr(module, PACKAGES[package])


def test_modules_inside_packages_are_imported_as_ever():
    from fedlightning.algorithms import fedbabu
    from fedlightning.datamodules import partitions

    assert fedbabu.FedBABU is fedlightning.FedBABU
    assert partitions.__name__ == "fedlightning.datamodules.partitions"


@pytest.mark.parametrize(
    ("name", "wrong", "right"),
    [
        ("RoundProgressBar", "refresh_rat", "refresh_rate"),
        ("RunRecord", "sumary", "summary"),
        ("LastCheckpoint", "dir_path", "dirpath"),
        ("PersonalizationCallback", "epoch", "epochs"),
    ],
)
def test_callbacks_name_the_nearest_keyword(name, wrong, right):
    from fedlightning import callbacks
    from fedlightning.errors import ConfigError

    with pytest.raises(
        ConfigError, match=f"{name} has no setting '{wrong}'. Did you mean '{right}'"
    ):
        getattr(callbacks, name)(**{wrong: 1})
