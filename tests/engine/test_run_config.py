"""A run made in Python leaves what a run of the command line leaves: its config and its facts."""

from __future__ import annotations

import pytest
import yaml
from pytorch_lightning.loggers.logger import Logger, rank_zero_experiment
from pytorch_lightning.utilities import rank_zero_only
from torch import nn

from fedlightning import (
    FedAvg,
    FedBABU,
    FederatedModule,
    FederatedTrainer,
    Federation,
    PersonalizationCallback,
)
from fedlightning.__main__ import main
from fedlightning.cli import FederatedCLI
from fedlightning.cli.config.overrides import settings_in
from fedlightning.datamodules import Digits, Shards
from fedlightning.models import MLP
from tests.toys import CLASSES, FEATURES, data, fit, net

CONFIG = """
model: {class_path: MLP, init_args: {in_features: 64, hidden: [4]}}
data:
  class_path: Digits
  init_args:
    num_clients: 10
    batch_size: 100
    partition: {class_path: Shards, init_args: {per_client: 2}}
federation: {algorithm: FedAvg, cohort_size: 2}
trainer:
  max_epochs: 1
  enable_progress_bar: false
  enable_model_summary: false
  callbacks: [{class_path: PersonalizationCallback, init_args: {epochs: 1}}]
"""
FACTS = {
    "federation/algorithm": "FedAvg",
    "federation/cohort_size": 2,
    "federation/seed": 0,
    "data/name": "Digits",
    "data/partition": "Shards",
    "data/partition/per_client": 2,
    "data/clients": 10,
}


def in_python(folder, **settings):
    built = FederatedTrainer(
        federation=Federation(algorithm=FedAvg(), cohort_size=2),
        max_epochs=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=[PersonalizationCallback(epochs=1)],
        **settings,
    )
    digits = Digits(num_clients=10, batch_size=100, partition=Shards(2))
    built.fit(MLP(64, hidden=[4]), datamodule=digits)
    return built


def config_of(folder):
    return yaml.safe_load((folder / "config.yaml").read_text())


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The folders of one run by the command line and one in Python."""
    root = tmp_path_factory.mktemp("runs")
    (root / "run.yaml").write_text(CONFIG)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        assert main(["fit", "--config", str(root / "run.yaml")]) == 0
        in_python(root)
    logs = root / "lightning_logs"
    return logs / "version_0", logs / "version_1"


def test_the_config_has_the_settings_that_the_command_line_writes(both):
    by_command, by_python = (settings_in(config_of(folder)) for folder in both)
    by_python.pop("trainer.default_root_dir"), by_command.pop("trainer.default_root_dir")
    differing = {
        key: (by_command.get(key), by_python.get(key))
        for key in by_command.keys() | by_python.keys()
        if by_command.get(key) != by_python.get(key)
    }
    assert differing == {}


def test_the_loggers_get_the_same_facts_from_both(both):
    one, other = (yaml.safe_load((folder / "hparams.yaml").read_text()) for folder in both)
    for name, value in FACTS.items():
        assert one[name] == other[name] == value
    assert one["versions/torch"] == other["versions/torch"]
    assert one.keys() - {"_instantiator"} >= {name for name in other if "/" in name}


def test_reports_read_both_alike(both, capsys):
    from fedlightning.studies.results import differing_settings
    from fedlightning.studies.run_reader import read_run

    one, other = (read_run(folder) for folder in both)
    assert (one.algorithm, one.seed, one.unfinished) == ("FedAvg", 0, "")
    assert (other.algorithm, other.seed, other.unfinished) == ("FedAvg", 0, "")
    assert other.versions.keys() >= {"pytorch-lightning"}
    assert differing_settings([one, other]) == []


def test_commands_take_the_folder_of_a_run_made_in_python(both, monkeypatch, tmp_path):
    folder = str(both[1])
    given = ["--config", f"{folder}/config.yaml", "--ckpt_path", folder, "--clients", "3"]
    assert main(["personalize", *given, "--trainer.default_root_dir", str(tmp_path)]) == 0
    again = (tmp_path / "lightning_logs" / "version_0" / "clients.csv").read_text().splitlines()
    assert again[1] == (both[1] / "clients.csv").read_text().splitlines()[4]
    assert main(["export", "--run", folder, "--client", "3", "--output", "three.pt"]) == 0


class Recording(Logger):
    """Counts what it is told."""

    def __init__(self):
        super().__init__()
        self.told = []

    name = version = "recording"

    @property
    @rank_zero_experiment
    def experiment(self):
        return None

    @rank_zero_only
    def log_hyperparams(self, params, *args, **kwargs):
        self.told.append(dict(params))

    @rank_zero_only
    def log_metrics(self, metrics, step=None):
        """Ignore them."""


class Silent(FederatedModule):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(FEATURES, 5), nn.Linear(5, CLASSES)


class MLFlowLogger(Recording):
    """A logger of this name, whose parameters cannot change."""


def test_each_logger_is_told_once_with_the_modules_hyperparameters(tmp_path):
    logger = Recording()
    clients = data()
    fit(net(dropout=0.25), FedBABU(), folder=tmp_path, logger=logger, datamodule=clients)
    (told,) = logger.told
    assert told["dropout"] == 0.25
    assert told["federation/algorithm"] == "FedBABU"
    assert told["data/clients"] == 4
    assert not clients.hparams_initial  # nothing stays behind
    assert not clients._log_hyperparams


def test_a_module_that_saves_no_hyperparameters_has_facts_all_the_same(tmp_path):
    logger = Recording()
    fit(net(module=Silent), FedAvg(), rounds=1, folder=tmp_path, logger=logger)
    assert logger.told[0]["federation/cohort_size"] == 1.0


@pytest.mark.parametrize(("kind", "facts"), [(Recording, True), (MLFlowLogger, False)])
def test_a_resumed_run_changes_no_parameter_of_mlflow(tmp_path, kind, facts):
    fit(net(), FedAvg(), rounds=1, folder=tmp_path)
    logger = kind()
    fit(net(), FedAvg(), rounds=2, folder=tmp_path, ckpt="last", logger=logger)
    assert ("federation/algorithm" in logger.told[0]) is facts


def test_tensorboard_shows_facts_among_its_hyperparameters(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    hparams = pytest.importorskip("tensorboard.plugins.hparams.plugin_data_pb2")
    built = fit(net(), FedBABU(), rounds=1, folder=tmp_path)
    events = accumulator.EventAccumulator(built.log_dir).Reload()
    content = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    shown = hparams.HParamsPluginData.FromString(content).session_start_info.hparams
    assert shown["federation/algorithm"].string_value == "FedBABU"
    assert shown["dropout"].number_value == 0.0
    assert shown["data/clients"].number_value == 4


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # wandb 0.31 on Python 3.11
def test_wandb_has_the_facts_in_its_config(tmp_path, monkeypatch):
    from pytorch_lightning.loggers import WandbLogger

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    wandb = WandbLogger(project="fedlightning", save_dir=tmp_path)
    fit(net(), FedBABU(), rounds=1, folder=tmp_path, logger=wandb)
    config = dict(wandb.experiment.config)
    wandb.experiment.finish()
    assert config["federation/algorithm"] == "FedBABU"
    assert config["data/name"] == "ClientDatasets"


def test_no_place_of_this_machine_and_no_example_is_told(tmp_path):
    logger = Recording()
    fit(net(), FedAvg(), rounds=1, folder=tmp_path, logger=logger)
    texts = [str(value) for value in logger.told[0].values()]
    assert not any(str(tmp_path) in text or text.startswith("/") for text in texts)
    assert not any("only in Python" in text or "tensor" in text for text in texts)


def test_what_only_the_program_has_is_named_and_refused(tmp_path, capsys):
    fit(net(), FedAvg(), rounds=1, folder=tmp_path)
    folder = tmp_path / "lightning_logs" / "version_0"
    text = (folder / "config.yaml").read_text()
    assert "# only in that program: data.train (a list of 4 tuples)" in text
    for words in (
        ["personalize", "--config", str(folder / "config.yaml"), "--ckpt_path", str(folder)],
        ["fit", "--config", str(folder / "config.yaml")],
    ):
        assert main(words) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"error: {folder / 'config.yaml'}: data.train was a list of 4 tuple")
        assert "pass data=... to fedlightning.Run(folder)" in said
    assert main(["influence", "--run", str(folder), "--clients", "1"]) == 2
    assert "made in Python, with initial weights" in capsys.readouterr().err


def test_a_resumed_run_rewrites_its_config_once_it_trains(tmp_path):
    fit(net(), FedAvg(), rounds=1, folder=tmp_path)
    folder = tmp_path / "lightning_logs" / "version_0"
    assert config_of(folder)["trainer"]["max_epochs"] == 1
    fit(net(), FedAvg(), rounds=3, folder=tmp_path, ckpt="last")
    assert config_of(folder)["trainer"]["max_epochs"] == 3


def test_a_run_of_the_command_line_keeps_its_own_config(tmp_path):
    arguments = ["fit", "--trainer.max_epochs=1", "--trainer.enable_progress_bar=false"]
    arguments += ["--model.hidden=[4]", "--data.num_clients=5", "--data.batch_size=100"]
    FederatedCLI(MLP, Digits, args=[*arguments, "--trainer.enable_model_summary=false"])
    config = config_of(tmp_path / "lightning_logs" / "version_0")
    assert config["model"]["hidden"] == [4]  # as its program reads it, without a class


def test_two_workers_write_one_config(tmp_path):
    fit(net(), FedAvg(), rounds=1, folder=tmp_path, devices=2, strategy="ddp_fork")
    folder = tmp_path / "lightning_logs" / "version_0"
    assert config_of(folder)["trainer"]["devices"] == 2
    assert yaml.safe_load((folder / "hparams.yaml").read_text())["data/clients"] == 4
