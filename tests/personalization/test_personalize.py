"""A run's personal models; those that `personalize` makes from its checkpoint are the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from safetensors.torch import load_file
from torch import nn

from fedlightning import (
    APFL,
    Algorithm,
    Ditto,
    FedBABU,
    FedBN,
    FederatedModule,
    FedPN,
    FedRoD,
    PerInvFL,
    PersonalizationCallback,
    PFedMe,
)
from fedlightning.datamodules import ClientDatasets
from fedlightning.errors import CheckpointError, ConfigError
from fedlightning.models import PosteriorNetwork
from fedlightning.personalization.models.reader import read_index, read_personal
from fedlightning.personalization.models.writer import state_digest
from fedlightning.personalization.on_demand import chosen_clients
from tests.toys import data, examples, fit, loop_of, net, same, state, trainer

PER = Algorithm(train="full", share="body")  # heads are kept
LG = Algorithm(train="full", share="head")  # bodies are kept


class Conv(FederatedModule):
    """A convolution, whose weights are trained in another layout than checkpoints have."""

    def __init__(self, **kwargs):
        super().__init__(lr=0.1)
        self.body = nn.Sequential(
            nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8),
            nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Flatten(),
        )  # fmt: skip
        self.head = nn.Linear(32, 3)


class Posteriors(PosteriorNetwork):
    """A posterior network for the toy data."""

    def __init__(self) -> None:
        super().__init__(in_features=4, hidden=[5], num_classes=3, features=2, transforms=2)


def callback(part="head", **kwargs):
    return PersonalizationCallback(**{"epochs": 2, "lr": 0.1, "part": part, **kwargs})


def run_folder(built) -> Path:
    return Path(built.log_dir)


def last(built) -> Path:
    return run_folder(built) / "checkpoints" / "last.ckpt"


def contents(run: Path) -> dict[str, bytes]:
    """Return the bytes of the clients' files, and of the table."""
    files = {path.name: path.read_bytes() for path in (run / "personalized").glob("client_*")}
    return {**files, "clients.csv": (run / "clients.csv").read_bytes()}


def personalised(folder, module, algorithm=None, part="head", devices=1, ckpt=None, **kwargs):
    settings = {"callbacks": [callback(part)], "folder": folder}
    if devices > 1:
        settings |= {"accelerator": "cpu", "devices": devices, "strategy": "ddp_fork"}
    built = trainer(algorithm or FedBABU(), **settings)
    built.personalize(module, data((8, 6, 7, 8)), ckpt, verbose=False, **kwargs)
    return built


# -- what is saved ---------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["head", "body", "full"])
def test_a_file_holds_the_fine_tuned_part_and_nothing_else(tmp_path, part):
    module, rule = net(norm=True), callback(part)
    built = fit(module, FedBABU(), datamodule=data((8, 6, 7, 8)), folder=tmp_path, callbacks=[rule])
    globally, index = state(module), read_index(run_folder(built))
    assert index.about.part == part
    assert index.about.round == 1
    assert index.about.global_sha256 == state_digest(globally)
    assert (index.about.input_shape, index.about.input_dtype) == ((4,), "float32")
    assert list(index.digests) == [0, 1, 2, 3]
    with rule.personalizer(built).at_work() as personalizer:
        for client in range(4):
            own = read_personal(index, client)
            assert sorted(own) == sorted(module.part_keys(part))
            personalizer.client(client)
            assert same(state(module), {**globally, **own})


def test_a_file_holds_what_the_client_has_kept_too(tmp_path):
    module = net()
    built = fit(module, LG, rounds=1, cohort=2, folder=tmp_path, callbacks=[callback()])
    index, kept = read_index(run_folder(built)), loop_of(built).personal
    assert len(kept) == 2
    for client in range(4):
        own = read_personal(index, client)
        assert set(own) == set(module.part_keys("full" if client in kept else "head"))
        for key in module.part_keys("body") if client in kept else ():
            assert torch.equal(own[key], kept.get(client)[key])


def test_files_are_those_of_the_last_personalization(tmp_path):
    built = fit(net(), FedBABU(), rounds=5, folder=tmp_path, callbacks=[callback(every_n_rounds=2)])
    assert read_index(run_folder(built)).about.round == 4
    assert not list(run_folder(built).glob(".pers*"))


@pytest.mark.parametrize("command", ["validate", "test"])
def test_validate_and_test_leave_them_too(tmp_path, command):
    fit(net(), FedBABU(), folder=tmp_path, callbacks=[callback()])
    run = tmp_path / "lightning_logs" / "version_0"
    built = trainer(FedBABU(), folder=tmp_path, callbacks=[callback()])
    checkpoint = run / "checkpoints" / "last.ckpt"
    getattr(built, command)(net(seed=5), datamodule=data(), ckpt_path=checkpoint, verbose=False)
    assert contents(run_folder(built)) == contents(run)
    about = read_index(run_folder(built)).about
    assert about.round == 1
    assert (run_folder(built) / about.checkpoint).resolve() == checkpoint


@pytest.mark.parametrize(
    ("wanted", "limit", "saved"), [(None, 3, False), (True, 3, True), (False, 9, False)]
)
def test_many_clients_files_are_written_only_where_asked_for(
    tmp_path, monkeypatch, recwarn, wanted, limit, saved
):
    monkeypatch.setattr("fedlightning.personalization.models.saving.MOST_CLIENTS", limit)
    rule = callback(save_personal=wanted)
    if wanted is None:
        with pytest.warns(UserWarning, match="the personal models of 4 clients, .* not saved"):
            built = fit(net(), FedBABU(), folder=tmp_path, callbacks=[rule])
    else:
        built = fit(net(), FedBABU(), folder=tmp_path, callbacks=[rule])
    assert (run_folder(built) / "personalized").exists() == saved


def test_large_models_files_are_not_written_unasked(tmp_path, monkeypatch):
    monkeypatch.setattr("fedlightning.personalization.models.saving.MOST_BYTES", 4 * 18 * 4 - 1)
    with pytest.warns(UserWarning, match="not saved"):  # a head of 18 numbers for 4 clients
        fit(net(), FedBABU(), folder=tmp_path, callbacks=[callback()])


class Breaks(pl.Callback):
    def on_client_personalized(self, trainer, pl_module, done, clients):
        if trainer.current_epoch == 1 and done == 3:
            raise KeyboardInterrupt


def test_a_personalization_that_fails_leaves_the_former_one(tmp_path):
    built = trainer(FedBABU(), folder=tmp_path, callbacks=[callback(every_n_rounds=1), Breaks()])
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        built.fit(net(), datamodule=data())
    assert read_index(run_folder(built)).about.round == 0
    assert not list(run_folder(built).glob(".pers*"))


# -- the same from a checkpoint --------------------------------------------------------------


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize(
    ("algorithm", "module", "part"),
    [
        (FedBABU(), net, "head"),
        (PER, lambda seed: net(seed, norm=True, dropout=0.3), "full"),
        (LG, net, "head"),
        (FedBABU(), lambda seed: net(seed, Conv), "full"),
        (FedBABU(), lambda seed: net(seed, Conv), "head"),
        (FedPN(), lambda seed: net(seed, Posteriors), "head + density"),
        (PerInvFL(personal_lr=0.1), net, "head"),
    ],
    ids=["head", "kept heads", "kept bodies", "conv", "conv head", "switch", "invariance"],
)
def test_personalize_gives_the_bits_of_the_run(tmp_path, algorithm, module, part, devices):
    fit(
        module(seed=0), algorithm, rounds=2, cohort=2, datamodule=data((8, 6, 7, 8)),
        folder=tmp_path, callbacks=[callback(part)],
    )  # fmt: skip
    run = tmp_path / "lightning_logs" / "version_0"
    checkpoint = run / "checkpoints" / "last.ckpt"
    personalised(tmp_path, module(seed=9), algorithm, part, devices, checkpoint)
    again = tmp_path / "lightning_logs" / "version_1"
    assert contents(again) == contents(run)
    assert (again / "clients.png").exists()
    first, second = read_index(run), read_index(again)
    assert first.digests == second.digests
    assert first.about.global_sha256 == second.about.global_sha256


@pytest.mark.parametrize("algorithm", [Ditto(), APFL(), PFedMe(), FedRoD(), FedBN()])
def test_clients_with_models_of_their_own_get_them_back_and_held_out_ones_theirs(
    tmp_path, algorithm
):
    """Of a client held out of training, too, the command makes the bits that the run has made."""
    given = {"sizes": (8, 6, 7, 8), "held_out_clients": 1, "seed": 3}
    module = net(norm=True)
    built = fit(
        module, algorithm, datamodule=data(**given), folder=tmp_path, callbacks=[callback()]
    )
    (newcomer,) = loop_of(built).data.held_out_ids
    again = trainer(algorithm, callbacks=[callback()], folder=tmp_path / "again")
    again.personalize(
        net(seed=1, norm=True), data(**given), last(built), clients=[newcomer, (newcomer + 1) % 4]
    )
    before, after = contents(run_folder(built)), contents(run_folder(again))
    files = [name for name in after if name.startswith("client_")]
    assert len(files) == 2
    assert [after[name] for name in files] == [before[name] for name in files]


def test_some_clients_alone_get_the_models_they_get_among_all(tmp_path):
    fit(net(), FedBABU(), datamodule=data((8, 6, 7, 8)), folder=tmp_path, callbacks=[callback()])
    everyone = contents(tmp_path / "lightning_logs" / "version_0")
    built = personalised(tmp_path, net(seed=9), ckpt="last", clients="1,3")
    some = contents(run_folder(built))
    assert sorted(some) == ["client_00001.safetensors", "client_00003.safetensors", "clients.csv"]
    assert all(some[name] == everyone[name] for name in some if name != "clients.csv")
    assert some["clients.csv"].count(b"\n") == 3
    built.personalize(net(), data((8, 6, 7, 8)), "last", verbose=False)
    assert len(read_index(run_folder(built)).digests) == 4  # the choice was for one call


def test_new_clients_start_from_the_global_model(tmp_path):
    """What the old client of the same number has kept is none of theirs."""
    module = net()
    fit(module, PER, folder=tmp_path, callbacks=[callback()])
    news = ClientDatasets(
        train=[examples(9, 50), examples(7, 51)], test=[examples(5, 60), examples(5, 61)],
        batch_size=4, num_classes=3,
    )  # fmt: skip
    built = trainer(PER, folder=tmp_path, callbacks=[callback(epochs=0)])
    with pytest.warns(UserWarning, match="the data differs from the checkpoint's run"):
        built.personalize(net(seed=4), news, "last", verbose=False)
    index = read_index(run_folder(built))
    assert list(index.digests) == [0, 1]
    for client in range(2):
        assert same(read_personal(index, client), module.part_state_dict("head"))


@pytest.mark.filterwarnings("ignore:1 of 2 clients have no test examples")
def test_clients_without_test_data_get_the_model_that_they_would_get_with_some(tmp_path):
    fit(net(), FedBABU(), folder=tmp_path)
    none, some = (torch.empty(0, 4), torch.empty(0, dtype=torch.int64)), examples(5, 60)
    models = []
    for first in (none, some):
        clients = ClientDatasets(
            train=[examples(9, 50), examples(7, 51)], test=[first, some], batch_size=4,
            num_classes=3,
        )  # fmt: skip
        built = trainer(FedBABU(), folder=tmp_path, callbacks=[callback(features_once=False)])
        built.personalize(net(seed=4), clients, "last", verbose=False)
        models.append(read_personal(read_index(run_folder(built)), 0))
    assert same(*models)
    assert not same(models[0], net().part_state_dict("head"))


def test_without_a_callback_its_defaults_count_and_the_trainer_stays_as_it_was(tmp_path):
    module = net()
    built = fit(module, FedBABU(), folder=tmp_path)
    loops, callbacks = built.test_loop, list(built.callbacks)
    metrics = built.personalize(module, data(), verbose=False)
    assert "personalized/acc" in metrics[0]
    assert "global/acc" not in metrics[0]
    assert read_index(run_folder(built)).about.part == "head"
    assert (built.test_loop, list(built.callbacks)) == (loops, callbacks)
    assert "global/acc" in built.test(module, data(), verbose=False)[0]


def test_the_global_model_stays_as_it_is(tmp_path):
    module = net()
    fit(module, FedBABU(), folder=tmp_path)
    before = state(module)
    built = personalised(tmp_path, other := net(seed=9), part="full", ckpt="last")
    assert same(state(other), before)
    assert load_file(run_folder(built) / "personalized" / "client_00000.safetensors").keys() == (
        before.keys()
    )


def test_a_checkpoint_of_another_network_is_refused_before_anything_is_written(tmp_path):
    fit(net(), FedBABU(), folder=tmp_path)
    with pytest.raises(CheckpointError, match=r"ckpt_path=.*only the model has body\.1"):
        personalised(tmp_path, net(norm=True), ckpt="last")
    assert [path.name for path in (tmp_path / "lightning_logs").iterdir()] == ["version_0"]


@pytest.mark.parametrize("given", ["x", "3-1", "1,,2", [], "-1", [1.5], [True], "", {"a": 1}])
def test_clients_that_are_none(given):
    with pytest.raises(ConfigError, match="clients"):
        chosen_clients(given)


@pytest.mark.parametrize(
    ("given", "chosen"),
    [(None, None), (7, [7]), ("7", [7]), ("3, 1-2", [1, 2, 3]), ([2, 1, 2], [1, 2]), ((0,), [0])],
)
def test_ids_and_ranges(given, chosen):
    assert chosen_clients(given) == chosen


def test_a_client_that_the_data_do_not_have(tmp_path):
    built = trainer(FedBABU(), folder=tmp_path)
    with pytest.raises(ConfigError, match="no client 9 in ClientDatasets, whose clients are 0"):
        built.personalize(net(), data(), clients=[2, 9])
