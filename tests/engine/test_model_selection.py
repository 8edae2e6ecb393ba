"""Models and settings are chosen by validation data; whoever takes test data is told."""

from __future__ import annotations

import pytest
import torch
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint

from fedlightning import (
    FedAvg,
    FedBABU,
    FedPer,
    LGFedAvg,
    LocalOnly,
    PersonalizationCallback,
)
from fedlightning.core.metrics import is_test_metric
from fedlightning.datamodules import ClientDatasets
from fedlightning.errors import ConfigError
from tests.toys import CLASSES, Net, data, examples, fit, loop_of, net, same, state

WAYS = [
    {"part": "head"},
    {"part": "head", "features_once": False},
    {"part": "body"},
    {"part": "full"},
]


@pytest.mark.parametrize(
    ("metric", "better"),
    [
        ("global/acc", "val/acc"),
        ("global/loss", "val/loss"),
        ("personalized/acc", "personalized/val_acc"),
        ("personalized/acc_p10", "personalized/val_acc"),
        ("initial/loss", "personalized/val_loss"),
        ("held_out/global/acc", "val/acc"),
        ("held_out/personalized/acc", "personalized/val_acc"),
    ],
)
def test_selecting_by_test_data_is_said_in_one_line(metric, better):
    personal = PersonalizationCallback(epochs=1, every_n_rounds=1)
    with pytest.warns(UserWarning, match="selects by test data") as caught:
        fit(
            net(), FedBABU(), rounds=1, datamodule=data(held_out_clients=1, seed=0),
            callbacks=[EarlyStopping(metric), personal],
        )  # fmt: skip
    (text,) = {str(w.message) for w in caught if "selects" in str(w.message)}
    assert text.startswith(f"EarlyStopping looks at {metric!r}: ")
    assert text.endswith(f"(data.val_fraction) and take {better!r}.")
    assert "\n" not in text


def test_a_checkpoint_of_the_best_round_is_told_too(tmp_path):
    with pytest.warns(UserWarning, match="ModelCheckpoint looks at 'global/loss'"):
        fit(net(), FedAvg(), folder=tmp_path, callbacks=[ModelCheckpoint(monitor="global/loss")])


@pytest.mark.parametrize("metric", ["val/acc", "personalized/val_acc", "initial/val_loss"])
def test_selecting_by_validation_data_is_silent(metric, tmp_path):
    best = ModelCheckpoint(monitor=metric, mode="max")
    callbacks = [best, PersonalizationCallback(epochs=1, every_n_rounds=1)]
    fit(  # a warning would be an error
        net(), FedBABU(), rounds=2, folder=tmp_path, callbacks=callbacks,
        datamodule=data(val_fraction=0.3),
    )  # fmt: skip
    assert best.best_model_score is not None


@pytest.mark.parametrize("metric", ["train/loss", "my_own", "lr-SGD", "globals", "tested"])
def test_other_names_are_nobodys_business(metric):
    assert not is_test_metric(metric)


def test_a_schedule_that_waits_for_test_data_is_told_too():
    class Plateau(Net):
        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
            schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
            return {
                "optimizer": optimizer,
                "lr_scheduler": {"scheduler": schedule, "monitor": "global/loss"},
            }

    with pytest.warns(UserWarning, match=r"ReduceLROnPlateau looks at 'global/loss': .*'val/loss'"):
        fit(net(module=Plateau), FedAvg())


def test_validation_metrics_without_validation_data_are_refused_before_the_first_round():
    callbacks = [EarlyStopping("personalized/val_acc"), PersonalizationCallback(every_n_rounds=1)]
    with pytest.raises(ConfigError, match=r"'personalized/val_acc'.*set data\.val_fraction"):
        fit(net(), FedBABU(), callbacks=callbacks)


@pytest.mark.parametrize("way", WAYS)
def test_personalised_validation_metrics_are_of_each_clients_own_validation_data(way):
    module, some = net(), data((8, 6, 7, 9), val_fraction=0.3)
    callback = PersonalizationCallback(epochs=2, lr=0.2, **way)
    built = fit(module, FedBABU(), datamodule=some, callbacks=[callback])
    accuracies = []
    with callback.personalizer(built).at_work() as personalizer, torch.no_grad():
        for client in range(4):
            with torch.enable_grad():
                personalizer.client(client)
            ((x, y),) = some.batches(client, "val")
            accuracies.append(float((module.eval()(x).argmax(1) == y).double().mean()))
    logged = {name: float(value) for name, value in built.callback_metrics.items()}
    assert logged["personalized/val_acc"] == pytest.approx(sum(accuracies) / 4)
    assert logged["initial/val_acc"] == pytest.approx(logged["val/acc"])
    assert accuracies != [record.acc_after for record in callback.records]


@pytest.mark.parametrize("features_once", [None, False])
def test_a_validation_step_of_ones_own_is_measured_as_it_is(features_once):
    class Own(Net):
        def validation_step(self, batch, batch_idx):
            x, y = batch
            assert x.shape[1] == 4, "features, and not the inputs"
            self.log("val_f1", (self(x).argmax(1) == y).float().mean())

    callback = PersonalizationCallback(epochs=2, features_once=features_once)
    built = fit(net(module=Own), FedBABU(), datamodule=data(val_fraction=0.3), callbacks=[callback])
    assert {"initial/val_f1", "personalized/val_f1"} <= built.callback_metrics.keys()


def test_without_validation_data_there_is_no_such_metric():
    built = fit(net(), FedBABU(), callbacks=[PersonalizationCallback(epochs=1)])
    assert not any("val" in name for name in built.callback_metrics)


def tuned(module, some, way):
    """Return every client's fine-tuned state, from one and the same global model."""
    built = fit(module, FedBABU(), rounds=1, datamodule=some)
    callback = PersonalizationCallback(epochs=2, lr=0.2, curve=True, **way)
    states = []
    with callback.personalizer(built).at_work() as personalizer:
        for client in range(3):
            personalizer.client(client)
            states.append(state(module))
    return states, loop_of(built).data


@pytest.mark.parametrize("way", WAYS)
def test_personalization_never_trains_on_validation_or_test_data(way):
    train = [examples(10, seed) for seed in range(3)]
    test = [examples(4, seed + 50) for seed in range(3)]
    settings = {"num_classes": CLASSES, "batch_size": 4, "val_fraction": 0.3, "seed": 0}
    before, some = tuned(net(), ClientDatasets(train=train, test=test, **settings), way)

    def spoiled(client):
        x, y = (part.clone() for part in train[client])
        rows = torch.tensor(some.indices(client, "val")) - 10 * client
        assert len(rows) == 3
        x[rows], y[rows] = 1e3, 0
        return x, y

    others = [(x + 1e3, torch.zeros_like(y)) for x, y in test]
    after, _ = tuned(
        net(), ClientDatasets(train=[spoiled(c) for c in range(3)], test=others, **settings), way
    )
    assert all(same(*pair) for pair in zip(before, after, strict=True))
    one_more, _ = tuned(net(), ClientDatasets(train=others, test=test, **settings), way)
    assert not same(before[0], one_more[0]), "nothing depends on the data"


@pytest.mark.filterwarnings("ignore:Early stopping conditioned on metric")
@pytest.mark.parametrize(
    ("metric", "better"),
    [
        ("val/acc", "personalized/val_acc"),
        ("val/loss", "personalized/val_loss"),
        ("val_f1", "personalized/val_f1"),
        ("val/mae_p10", "personalized/val_mae"),
    ],
)
def test_selecting_by_a_model_that_no_client_has_is_said(metric, better):
    with pytest.warns(UserWarning, match="a model that no client has") as caught:
        fit(
            net(), FedPer(), rounds=1, datamodule=data(val_fraction=0.3),
            callbacks=[EarlyStopping(metric, strict=False)],
        )  # fmt: skip
    (text,) = {str(w.message) for w in caught if "no client" in str(w.message)}
    assert text.startswith(f"EarlyStopping looks at {metric!r}, which FedPer measures ")
    assert f"take {better!r}, with PersonalizationCallback(every_n_rounds=1)" in text


@pytest.mark.parametrize("algorithm", [FedPer(), LGFedAvg(), LocalOnly()])
def test_whose_model_is_measured_is_said_at_once(algorithm, caplog):
    with caplog.at_level("INFO"):
        fit(net(), algorithm, rounds=1)
    (text,) = [r.getMessage() for r in caplog.records if "each client keeps" in r.getMessage()]
    assert text.startswith(f"{algorithm.name}: each client keeps its own ")
    assert "`personalized/...`" in text


def test_nothing_is_said_where_clients_share_the_model(caplog):
    with caplog.at_level("INFO"):
        fit(net(), FedAvg(), rounds=1)
    assert not [r for r in caplog.records if "each client keeps" in r.getMessage()]
