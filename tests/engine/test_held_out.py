"""Clients held out of training are evaluated and personalised alike, and reported apart."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch

from fedlightning import SCAFFOLD, Algorithm, FedAvg, FedBABU, PersonalizationCallback
from fedlightning.datamodules import ClientDatasets
from fedlightning.errors import CheckpointError, ConfigError
from tests.toys import CLASSES, data, examples, fit, loop_of, net, same, state

SIZES = (8, 6, 7, 5, 9, 6)
TABLES = (
    "metrics.csv", "clients.csv", "held_out_clients.csv", "finetuning.csv",
    "held_out_finetuning.csv",
)  # fmt: skip


def clients(held_out=2, **kwargs):
    return data(SIZES, **{"held_out_clients": held_out, "seed": 0, **kwargs})


def personal(**kwargs):
    return PersonalizationCallback(**{"epochs": 3, "lr": 0.1, "curve": True, **kwargs})


def accuracies(module, some):
    """Measure a model on each client's test data, by hand."""
    accuracy = {}
    with torch.no_grad():
        for client in some.evaluated_clients:
            ((x, y),) = some.batches(client, "test")
            accuracy[client] = float((module.eval()(x).argmax(1) == y).double().mean())
    return accuracy


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def test_global_metrics_are_those_of_clients_that_train_and_the_others_have_their_own():
    module, some = net(), clients()
    built = fit(module, FedAvg(), rounds=3, datamodule=some)
    by_hand = accuracies(module, some)
    held_out = set(some.held_out_ids.tolist())
    logged = {name: float(value) for name, value in built.callback_metrics.items()}
    expected = mean(acc for client, acc in by_hand.items() if client not in held_out)
    others = mean(acc for client, acc in by_hand.items() if client in held_out)
    assert expected != others
    assert logged["global/acc"] == pytest.approx(expected)
    assert logged["held_out/global/acc"] == pytest.approx(others)


@pytest.mark.parametrize("algorithm", [FedAvg(), SCAFFOLD()], ids=["FedAvg", "SCAFFOLD"])
def test_training_is_that_of_a_federation_without_them(algorithm):
    some = clients(batch_size=100)
    others = ClientDatasets(
        train=[examples(SIZES[client], client) for client in some.training_clients],
        test=[examples(4, 100 + client) for client in some.training_clients],
        num_classes=CLASSES,
        batch_size=100,
    )
    with_them, without = net(), net()
    fit(with_them, algorithm, rounds=3, cohort=2, datamodule=some)
    fit(without, algorithm, rounds=3, cohort=2, datamodule=others)
    for key, value in state(with_them).items():  # sums differ in their order
        torch.testing.assert_close(state(without)[key], value, rtol=1e-5, atol=1e-6)
    assert not same(state(with_them), state(net()))


def test_they_are_never_trained():
    trained = []

    class Watch(pl.Callback):
        def on_client_end(self, trainer, pl_module, update):
            trained.append(update.client)

    some = clients()
    fit(net(), FedAvg(), rounds=6, cohort=2, datamodule=some, callbacks=[Watch()])
    assert set(trained) == set(some.training_clients)


def test_a_share_is_one_of_those_that_train():
    built = fit(net(), FedAvg(), cohort=0.5, datamodule=clients())
    assert len(loop_of(built).cohort(0)) == 2
    with pytest.raises(ConfigError, match=r"cohort_size=5 is more than .* clients to train: 4"):
        fit(net(), FedAvg(), cohort=5, datamodule=clients())


def test_each_has_its_row_in_one_of_two_tables(tmp_path):
    some, callback = clients(), personal()
    built = fit(net(), FedBABU(), datamodule=some, folder=tmp_path, callbacks=[callback])
    rows = {}
    for name in ("clients.csv", "held_out_clients.csv"):
        with next(tmp_path.rglob(name)).open() as file:
            rows[name] = list(csv.DictReader(file))
    ids = {name: [int(row["client_id"]) for row in table] for name, table in rows.items()}
    assert ids["clients.csv"] == list(some.training_clients)
    assert ids["held_out_clients.csv"] == some.held_out_ids.tolist()
    for prefix, name in (("", "clients.csv"), ("held_out/", "held_out_clients.csv")):
        for moment, column in (("initial", "acc_before"), ("personalized", "acc_after")):
            logged = float(built.callback_metrics[f"{prefix}{moment}/acc"])
            assert logged == pytest.approx(mean(float(row[column]) for row in rows[name]))
    assert [record.client_id for record in callback.records] == ids["clients.csv"]


def test_without_them_there_is_no_table_and_no_metric(tmp_path):
    built = fit(net(), FedBABU(), folder=tmp_path, callbacks=[personal(curve=False)])
    assert not any("held_out" in name for name in built.callback_metrics)
    assert not list(tmp_path.rglob("held_out*"))


def test_they_start_from_the_global_model_where_others_have_kept_a_part():
    module, some = net(), clients()
    kept = Algorithm(train="full", share="body")
    callback = personal()
    fit(module, kept, datamodule=some, callbacks=[callback])
    by_hand = accuracies(module, some)
    (held_out,) = (each for each in callback.views if each.view.name == "held_out")
    for result in held_out.results:
        assert result.record.acc_before == pytest.approx(by_hand[result.record.client_id])


def test_a_held_out_client_is_personalised_as_it_would_be_otherwise():
    module, some = net(), clients()
    built = fit(module, FedBABU(), datamodule=some)
    held_out = int(some.held_out_ids[0])
    states = []
    for number in (2, 0):
        built.datamodule = other = clients(held_out=number)
        other.setup()
        with personal().personalizer(built).at_work() as personalizer:
            personalizer.client(held_out)
            states.append(state(module))
    assert same(*states)


@pytest.mark.parametrize("changed", [{"held_out": 3}, {"seed": 4}])
def test_others_held_out_are_no_run_to_go_on_with(changed, tmp_path):
    fit(net(), FedAvg(), rounds=1, datamodule=clients(), folder=tmp_path)
    with pytest.raises(CheckpointError, match=r"data.held_out_clients: 2 \(ids .*\) then"):
        fit(
            net(), FedAvg(), rounds=2, datamodule=clients(**changed), folder=tmp_path, ckpt="last"
        )  # fmt: skip


def run(folder: Path, rounds: int = 4, **kwargs) -> Path:
    settings = {"folder": folder, "datamodule": clients(val_fraction=0.3), **kwargs}
    callbacks = [personal(part="full", every_n_rounds=2), *settings.pop("callbacks", ())]
    fit(net(dropout=0.3), FedBABU(), rounds=rounds, cohort=3, callbacks=callbacks, **settings)
    return folder / "lightning_logs" / "version_0"


def tables(folder: Path) -> dict[str, str]:
    return {name: (folder / name).read_text() for name in TABLES}


def test_several_workers_write_the_same_tables(tmp_path):
    several = {"accelerator": "cpu", "devices": 2, "strategy": "ddp_fork"}
    assert tables(run(tmp_path / "one")) == tables(run(tmp_path / "two", **several))


def test_a_resumed_run_writes_the_same_tables(tmp_path):
    class Stop(pl.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 3:
                raise RuntimeError("stopped")

    whole = run(tmp_path / "whole")
    with pytest.raises(RuntimeError, match="stopped"):
        run(tmp_path / "half", callbacks=[Stop()])
    assert tables(whole) == tables(run(tmp_path / "half", ckpt="last"))


def test_clients_of_one_kernel_are_personalised_too(tmp_path):
    plain = {"datamodule": clients(), "federation": {"clients_per_kernel": 2}}
    folder = tmp_path / "lightning_logs" / "version_0"
    fit(net(), FedBABU(), cohort=4, folder=tmp_path, callbacks=[personal()], **plain)
    assert len((folder / "held_out_clients.csv").read_text().splitlines()) == 3
    assert len((folder / "finetuning.csv").read_text().splitlines()) == 5
