"""A slip in Python is answered before anything is made: one line, the name, what was meant."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger
from torch.utils.data import DataLoader, TensorDataset

from fedlightning import (
    AtomicCheckpointIO,
    FedAvg,
    FedBABU,
    FederatedTrainer,
    Federation,
    FedProx,
    PersonalizationCallback,
)
from fedlightning.algorithms.aggregation import Krum
from fedlightning.datamodules import Digits, Dirichlet, Shards
from fedlightning.errors import CheckpointError, ConfigError
from fedlightning.federation.sampling import UniformSampler
from fedlightning.federation.uplink import TopK
from fedlightning.models import MLP
from fedlightning.personalization.models import client_model
from tests.toys import Net, data, examples, net, trainer


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: FederatedTrainer(federation=FedBABU()),
            "federation must be an instance of Federation, got the algorithm FedBABU; pass "
            "federation=Federation(algorithm=FedBABU(...)).",
        ),
        (
            lambda: FederatedTrainer(federation=FedBABU),
            "federation must be an instance of Federation, got the algorithm FedBABU; pass ",
        ),
        (
            lambda: FederatedTrainer(federation="fedbabu"),
            "federation must be an instance of Federation, got the algorithm FedBABU; pass ",
        ),
        (
            lambda: FederatedTrainer(strategy=FedProx()),
            "trainer.strategy says how processes work together, and FedProx is an algorithm; pass "
            "federation=Federation(algorithm=FedProx(...)).",
        ),
        (
            lambda: FederatedTrainer(federation=Federation),
            "federation must be an instance of Federation, got the class Federation; create an "
            "instance: Federation(...).",
        ),
        (
            lambda: FederatedTrainer(federation={"cohort_size": 2}),
            "federation must be an instance of Federation, got dict.",
        ),
        (
            lambda: Federation(FedBABU),
            "federation.algorithm must be an instance of Algorithm, got the class FedBABU; create "
            "an instance: FedBABU(...).",
        ),
        (
            lambda: Federation("FedBabu"),
            "federation.algorithm must be an instance of Algorithm, got 'FedBabu'. Did you mean "
            "FedBABU(...)?",
        ),
        (
            lambda: Federation(None),
            "federation.algorithm must be an instance of Algorithm, got None.",
        ),
        (
            lambda: Federation(FedAvg(), aggregator=Krum),
            "federation.aggregator must be an instance of Aggregator, got the class Krum;",
        ),
        (
            lambda: Federation(FedAvg(), compression="TopK"),
            "federation.compression must be an instance of Compression, got 'TopK'. Did you mean "
            "TopK(...)?",
        ),
        (
            lambda: Federation(FedAvg(), uplink=[TopK]),
            "federation.uplink must be an instance of UplinkStage, got the class TopK;",
        ),
        (
            lambda: Federation(sampler=UniformSampler),
            "federation.sampler must be an instance of ClientSampler, got the class Uniform",
        ),
        (
            lambda: Digits(num_clients=5, partition=Shards),
            "partition must be an instance of Partition, got the class Shards; create an instance: "
            "Shards(...).",
        ),
        (
            lambda: Digits(num_clients=5, partition="Shard"),
            "partition must be an instance of Partition, got 'Shard'. Did you mean Shards(...)?",
        ),
        (
            lambda: FederatedTrainer(callbacks=PersonalizationCallback),
            "trainer.callbacks must be an instance of Callback, got the class "
            "PersonalizationCallback; create an instance: PersonalizationCallback(...).",
        ),
        (
            lambda: FederatedTrainer(callbacks=[PersonalizationCallback(), "EarlyStoping"]),
            "trainer.callbacks must be an instance of Callback, got 'EarlyStoping'. Did you mean "
            "EarlyStopping(...)?",
        ),
        (
            lambda: FederatedTrainer(logger=CSVLogger),
            "trainer.logger must be an instance of Logger, got the class CSVLogger;",
        ),
    ],
)  # fmt: skip
def test_an_object_of_the_wrong_kind(build, message):
    with pytest.raises(ConfigError) as caught:
        build()
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: Federation(cohort_siz=3),
            "Federation has no setting 'cohort_siz'. Did you mean 'cohort_size'?",
        ),
        (
            lambda: FederatedTrainer(max_epoch=3),
            "FederatedTrainer has no setting 'max_epoch'. Did you mean 'max_epochs'?",
        ),
        (
            lambda: FederatedTrainer(local_epochs=3),
            "FederatedTrainer has no setting 'local_epochs'; it belongs to the federation: "
            "FederatedTrainer(federation=Federation(local_epochs=...)).",
        ),
        (
            lambda: PersonalizationCallback(epoch=3),
            "PersonalizationCallback has no setting 'epoch'. Did you mean 'epochs'?",
        ),
        (lambda: FedProx(mew=0.1), "FedProx has no setting 'mew' (its settings: mu, "),
        (lambda: Dirichlet(alfa=0.1), "Dirichlet has no setting 'alfa'. Did you mean 'alpha'?"),
        (lambda: Shards(x=2), "Shards has no setting 'x' (its settings: per_client)."),
        (
            lambda: Digits(num_client=5),
            "Digits has no setting 'num_client'. Did you mean 'num_clients'?",
        ),
        (lambda: MLP(widht=5), "MLP has no setting 'widht'"),
        (lambda: MLP(momentm=0.5), "MLP has no setting 'momentm'. Did you mean 'momentum'?"),
        (lambda: TopK(fractio=0.5), "TopK has no setting 'fractio'. Did you mean 'fraction'?"),
    ],
)  # fmt: skip
def test_a_misspelt_argument(build, message):
    with pytest.raises(ConfigError) as caught:
        build()
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    "arguments",
    [
        {"seed": "x"},
        {"num_threads": "1"},
        {"personal_memory_mb": "x"},
        {"client_timeout": "x"},
        {"local_epochs": "4"},
        {"cohort_size": "4"},
    ],
)
def test_a_text_in_the_place_of_a_number(arguments):
    (name,) = arguments
    with pytest.raises(ConfigError, match=f"federation.{name} must be"):
        Federation(**arguments)
    with pytest.raises(ConfigError, match="lr must be"):
        PersonalizationCallback(lr="0.1")


def test_classes_of_ones_own_take_what_their_constructors_take():
    class Mine(FedAvg):
        def __init__(self, extra: int = 0, **kwargs):
            self.extra = kwargs.pop("more", extra)
            super().__init__(**kwargs)

    assert Mine(more=3).extra == 3


CALLS = ["fit", "validate", "test", "predict", "personalize"]


@pytest.mark.parametrize("call", CALLS)
def test_classes_in_the_place_of_model_and_data(call):
    run = getattr(trainer(FedAvg()), call)
    with pytest.raises(ConfigError, match=r"model must be an instance of LightningModule, got the"):
        run(Net, datamodule=data())
    with pytest.raises(ConfigError, match=r"an instance of FederatedDataModule, got the class Dig"):
        run(net(), datamodule=Digits)


@pytest.mark.parametrize("call", CALLS[:-1])
def test_a_misspelt_argument_of_a_call(call):
    run = getattr(trainer(FedAvg()), call)
    message = rf"FederatedTrainer\.{call} has no setting 'datamodul'\. Did you mean 'datamodule'\?"
    with pytest.raises(ConfigError, match=message):
        run(net(), datamodul=data())


def test_arguments_in_each_others_place():
    with pytest.raises(
        ConfigError, match=r"got the data module ClientDatasets: the model comes fi"
    ):
        trainer(FedAvg()).fit(data(), net())
    with pytest.raises(ConfigError, match="model must be an instance of LightningModule, got None"):
        trainer(FedAvg()).fit(None, datamodule=data())


@pytest.mark.parametrize("missing", ["training_step", "configure_optimizers"])
def test_a_module_that_lacks_what_training_needs(missing, tmp_path):
    lacking = type("Lacking", (Net,), {missing: getattr(pl.LightningModule, missing)})
    with pytest.raises(ConfigError, match=f"^Lacking has no {missing}: write one that returns"):
        trainer(FedAvg(), folder=tmp_path).fit(lacking(), datamodule=data())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("path", ["s3://bucket/last.ckpt", Path("hf://me/model"), "http://a/b"])
def test_a_remote_checkpoint(call, path, tmp_path):
    run = getattr(trainer(FedAvg(), folder=tmp_path), call)
    with pytest.raises(CheckpointError, match=r"ckpt_path='\w+:/.*': remote paths are not read"):
        run(net(), datamodule=data(), ckpt_path=path)
    assert list(tmp_path.iterdir()) == []


def test_a_remote_folder_for_checkpoints_is_refused_before_training(tmp_path):
    remote = ModelCheckpoint(dirpath="memory://checkpoints")
    with pytest.raises(
        ConfigError, match=r"ModelCheckpoint\(dirpath='memory://checkpoints'\): che"
    ):
        trainer(FedAvg(), folder=tmp_path, callbacks=[remote])


def test_a_remote_checkpoint_is_refused_by_every_reader(tmp_path):
    with pytest.raises(CheckpointError, match="remote paths are not read"):
        AtomicCheckpointIO().load_checkpoint("s3://bucket/last.ckpt")
    with pytest.raises(CheckpointError, match="remote paths are not read"):
        client_model(tmp_path, "global", net(), ckpt_path="s3://bucket/last.ckpt")


def test_a_loader_of_everything_does_not_say_whose_examples_are_whose():
    everything = DataLoader(TensorDataset(*examples(20, 0)), 4)
    with pytest.raises(ConfigError, match=r"DataLoader does not say which client .*`datamodule`"):
        trainer(FedAvg()).fit(net(), everything)
    with pytest.raises(ConfigError, match=r"DataLoader does not say which client .*`datamodule`"):
        trainer(FedAvg()).personalize(net(), everything)
    with pytest.raises(ConfigError, match=r"needs a FederatedDataModule as `datamodule`; got none"):
        trainer(FedAvg()).fit(net())


def test_the_global_model_is_validated_on_a_loader_of_ones_own():
    clients, (x, y) = data(val_fraction=0.25), examples(30, 7)
    for given in ({"train_dataloaders": clients}, {"datamodule": clients}):
        module, built = net(), trainer(FedAvg())
        built.fit(module, **given, val_dataloaders=DataLoader(TensorDataset(x, y), 30))
        module.eval()
        with torch.no_grad():
            accuracy = (module(x).argmax(dim=1) == y).float().mean()
        assert float(built.callback_metrics["val/acc"]) == pytest.approx(float(accuracy))
    built = trainer(FedAvg())
    built.fit(net(), datamodule=clients)  # the clients' own examples again
    assert float(built.callback_metrics["val/acc"]) != pytest.approx(float(accuracy))


@pytest.fixture
def other_lightning(monkeypatch):
    """A package ``lightning`` whose classes are those of ``pytorch_lightning`` under its name."""
    package = types.ModuleType("lightning")
    for name, base in (
        ("LightningModule", torch.nn.Module),
        ("LightningDataModule", object),
        ("Callback", object),
        ("Logger", object),
        ("Profiler", object),
    ):
        stock = vars(pl.Callback) if name == "Callback" else {}
        own = {key: value for key, value in stock.items() if key not in ("__dict__", "__weakref__")}
        setattr(package, name, type(name, (base,), {**own, "__module__": "lightning.pytorch"}))
    monkeypatch.setitem(sys.modules, "lightning", package)
    return package


def test_classes_of_the_package_lightning(other_lightning):
    L = other_lightning
    message = (
        r", a class of the package `lightning`; fedlightning uses `pytorch_lightning`.*: write "
        r"`import pytorch_lightning as pl` instead of `import lightning as L`\.$"
    )

    class Module(L.LightningModule): ...

    class Data(L.LightningDataModule): ...

    class Callback(L.Callback): ...

    class Logger(L.Logger): ...

    class Profiler(L.Profiler): ...

    for call in CALLS:
        run = getattr(trainer(FedAvg()), call)
        with pytest.raises(ConfigError, match="got Module" + message):
            run(Module(), datamodule=data())
        with pytest.raises(ConfigError, match="got Data" + message):
            run(net(), datamodule=Data())
    with pytest.raises(ConfigError, match="trainer.callbacks .* got Callback" + message):
        FederatedTrainer(callbacks=[Callback()])
    with pytest.raises(ConfigError, match="trainer.logger .* got Logger" + message):
        FederatedTrainer(logger=Logger())
    with pytest.raises(
        ConfigError, match=r"trainer.profiler: Profiler is a class of the package `l"
    ):
        FederatedTrainer(profiler=Profiler())

    class Bringing(Net):
        def configure_callbacks(self):
            return Callback()

    with pytest.raises(ConfigError, match="trainer.callbacks .* got Callback" + message):
        trainer(FedAvg()).fit(Bringing(), datamodule=data())


def test_a_compiled_module_is_a_module():
    from fedlightning.engine.checks.inputs import check_inputs

    check_inputs(torch.compile(net()), [data()], "last")
    with pytest.raises(ConfigError, match="model must be an instance of LightningModule, got Seq"):
        check_inputs(torch.nn.Sequential(), [], None)
