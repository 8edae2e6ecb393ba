"""Names of clients from the data to every table, message and command of a run."""

import csv
import json
import shutil

import pytest

from fedlightning import FedAvg, FederatedTrainer, Federation, PersonalizationCallback
from fedlightning.callbacks.predictions import PredictionWriter
from fedlightning.cli.export import _client
from fedlightning.datamodules import ClientDatasets
from fedlightning.errors import ConfigError, FederationError
from fedlightning.federation import Synchronous
from fedlightning.storage.run_layout import client_names_in, personal_names_in
from tests.toys import Net, examples, net

NAMES = ("charite", "mayo", "ucla")


def named(**options):
    train = {name: examples(8, seed) for seed, name in enumerate(NAMES)}
    test = {name: examples(4, 100 + seed) for seed, name in enumerate(NAMES)}
    return ClientDatasets(train, test, num_classes=3, batch_size=4, **options)


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("named")
    trainer = FederatedTrainer(
        federation=Federation(FedAvg(), cohort_size=2, seed=0), max_epochs=1,
        default_root_dir=folder, callbacks=[PersonalizationCallback(epochs=1)],
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(net(), datamodule=named())
    return trainer, next(folder.rglob("clients.csv")).parent


def test_tables_have_the_names_in_their_last_column(run):
    _, folder = run
    for table in ("clients.csv", "partition.csv"):
        found = rows(folder / table)
        assert [row["client_name"] for row in found] == list(NAMES)
        assert list(found[0])[-1] == "client_name"
        assert [row["client_id"] for row in found] == ["0", "1", "2"]
    assert client_names_in(folder) == list(NAMES)


def test_files_are_keyed_by_id(run):
    _, folder = run
    index = json.loads((folder / "personalized" / "index.json").read_text())
    assert list(index["clients"]) == ["0", "1", "2"]


def test_predictions_have_the_names(run):
    trainer, folder = run
    trainer.callbacks.append(writer := PredictionWriter())
    try:
        trainer.predict(net(), datamodule=named())
    finally:
        trainer.callbacks.remove(writer)
    found = rows(folder / "predictions.csv")
    assert list(found[0]) == [
        "client_id", "sample", "label", "prediction", "probability", "client_name",
    ]  # fmt: skip
    assert [row["client_name"] for row in found] == [name for name in NAMES for _ in range(4)]


def test_a_timeline_has_the_names(tmp_path):
    trainer = FederatedTrainer(
        federation=Federation(FedAvg(), cohort_size=2, seed=0, schedule=Synchronous(1.0)),
        max_epochs=2, default_root_dir=tmp_path, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(net(), datamodule=named())
    found = rows(next(tmp_path.rglob("timeline.csv")))
    assert list(found[0])[-1] == "client_name"
    assert [row["client_name"] for row in found] == [NAMES[int(row["client"])] for row in found]


def test_the_index_of_personal_models_has_the_names(run, tmp_path):
    trainer, folder = run
    trainer.personalize(net(), datamodule=named(), clients="mayo,ucla", verbose=False)
    assert personal_names_in(folder) == {1: "mayo", 2: "ucla"}
    shutil.copytree(folder / "personalized", tmp_path / "personalized")  # alone, without the table
    assert _client("ucla", tmp_path) == 2
    assert personal_names_in(tmp_path / "none") == {}


def test_clients_are_chosen_by_name(run):
    trainer, folder = run
    trainer.personalize(net(), datamodule=named(), clients="ucla,charite", verbose=False)
    assert [row["client_name"] for row in rows(folder / "clients.csv")] == ["charite", "ucla"]
    with pytest.raises(ConfigError, match=r"'uccla' is neither.*Did you mean 'ucla'"):
        trainer.personalize(net(), datamodule=named(), clients=["uccla"], verbose=False)
    assert _client("mayo", folder) == 1
    with pytest.raises(ConfigError, match=r"client must be a client id or global.*mean 'mayo'"):
        _client("mayoo", folder)


class Failing(Net):
    def training_step(self, batch, batch_idx):
        raise ValueError("bad luck")


@pytest.mark.filterwarnings("ignore:client . .*, round 0. ValueError")
@pytest.mark.parametrize("policy", ["fail", "skip"])
def test_a_client_that_fails_is_named(policy):
    trainer = FederatedTrainer(
        federation=Federation(FedAvg(), cohort_size=1.0, on_client_failure=policy),
        max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    with pytest.raises(FederationError, match=r"client \d \((charite|mayo|ucla)\), round 0: Val"):
        trainer.fit(net(module=Failing), datamodule=named())
