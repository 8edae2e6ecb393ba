"""The curve of fine-tuning shows what other numbers of epochs would give, and changes nothing."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import torch

from fedlightning import FedBABU, PersonalizationCallback
from fedlightning.datamodules import ClientDatasets
from tests.toys import CLASSES, Net, data, examples, fit, net, same, state

WAYS = {
    "head alone": {"part": "head"},
    "head, the long way": {"part": "head", "features_once": False},
    "body": {"part": "body"},
    "full": {"part": "full"},
}
ways = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())


class Noisy(Net):
    """Draws an odd number of normal numbers from NumPy in every epoch: one is kept back."""

    def training_step(self, batch, batch_idx):
        x, y = batch
        if batch_idx == 0:
            x = x + np.random.normal()
        noise = torch.tensor(np.random.normal(size=tuple(x.shape)), dtype=x.dtype)
        return super().training_step((x + 0.1 * noise, y), batch_idx)


def personalised(epochs=3, module=Net, datamodule=None, **kwargs):
    """Fit a round, personalise every client; return results, states and the personalizer."""
    made = net(module=module, dropout=0.3, norm=True)
    some = datamodule or data((12, 9, 11, 10), val_fraction=0.3)
    built = fit(made, FedBABU(), rounds=1, datamodule=some)
    callback = PersonalizationCallback(**{"epochs": epochs, "lr": 0.2, **kwargs})
    results, states = [], []
    with callback.personalizer(built).at_work() as personalizer:
        for client in range(some.num_clients):
            results.append(personalizer.client(client))
            states.append(state(made))
    return results, states, personalizer


@ways
@pytest.mark.parametrize("module", [Net, Noisy])
def test_weights_and_scores_are_those_without_the_curve_bit_for_bit(way, module):
    plain, plain_states, _ = personalised(module=module, **way)
    curved, curved_states, _ = personalised(module=module, curve=True, **way)
    assert all(same(*pair) for pair in zip(plain_states, curved_states, strict=True))
    for one, other in zip(plain, curved, strict=True):
        assert (one.record, one.before, one.after) == (other.record, other.before, other.after)
        assert one.curve == ()


@ways
def test_after_so_many_epochs_it_has_what_as_many_epochs_give(way):
    curved, _, _ = personalised(curve=True, **way)
    for epochs in range(4):
        short, _, _ = personalised(epochs=epochs, **way)
        for one, other in zip(short, curved, strict=True):
            assert one.after == other.curve[epochs]
            assert other.curve[epochs].keys() == {"acc", "loss", "val_acc", "val_loss"}
    assert len({tuple(at.values()) for at in curved[0].curve}) == 4, "nothing was learnt"


def test_both_ways_are_what_they_are_taken_for():
    assert personalised(curve=True)[2].fallback_reason is None
    assert personalised(curve=True, features_once=False)[2].fallback_reason is not None


def test_without_epochs_there_is_one_point():
    (result, *_), _, _ = personalised(epochs=0, curve=True)
    assert result.curve == (result.before,) == (result.after,)


class NothingToTrainOn(ClientDatasets):
    """Clients of which the one that is held out has no training data."""

    def num_examples(self, client, split="train"):
        return len(self.indices(client, split))

    def indices(self, client, split="train"):
        rows = super().indices(client, split)
        return rows[:0] if split == "train" and self.is_held_out(client) else rows


@ways
def test_a_client_without_training_data_stays_where_it_is(way):
    some = NothingToTrainOn(
        train=[examples(8, seed) for seed in range(3)],
        test=[examples(4, seed) for seed in range(3)],
        num_classes=CLASSES,
        batch_size=4,
        held_out_clients=1,
    )
    results, _, _ = personalised(datamodule=some, curve=True, **way)
    (client,) = some.held_out_ids
    assert results[client].record.num_train == 0
    assert results[client].curve == (results[client].before,) * 4


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_goes_on_from_epoch_to_epoch(momentum, nesterov):
    def optimizer(parameters):
        look_ahead = nesterov and momentum > 0
        return torch.optim.SGD(parameters, lr=0.2, momentum=momentum, nesterov=look_ahead)

    _, plain, _ = personalised(optimizer=optimizer)
    _, curved, way = personalised(optimizer=optimizer, curve=True)
    assert way.fallback_reason is None
    assert all(same(*pair) for pair in zip(plain, curved, strict=True))


@pytest.mark.pictures
def test_the_table_is_of_the_clients_curves(tmp_path):
    callback = PersonalizationCallback(epochs=3, lr=0.2, curve=True)
    some = data((12, 9, 11, 10), val_fraction=0.3)
    fit(net(), FedBABU(), folder=tmp_path, datamodule=some, callbacks=[callback])
    with next(tmp_path.rglob("finetuning.csv")).open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["epoch"]) for row in rows] == [0, 1, 2, 3]
    for epoch, row in enumerate(rows):
        test, val = (
            torch.tensor([r.curve[epoch][name] for r in callback.results], dtype=torch.float64)
            for name in ("acc", "val_acc")
        )
        assert int(row["num_clients"]) == 4
        assert float(row["acc_mean"]) == pytest.approx(float(test.mean()))
        assert float(row["acc_std"]) == pytest.approx(float(test.std(correction=0)))
        assert float(row["acc_p10"]) == pytest.approx(float(test.quantile(0.1)))
        assert float(row["val_acc_mean"]) == pytest.approx(float(val.mean()))
    assert float(rows[-1]["acc_mean"]) != float(rows[0]["acc_mean"])
    assert next(tmp_path.rglob("finetuning.png")).read_bytes()[:4] == b"\x89PNG"


def test_nobody_pays_for_it_who_has_not_asked(tmp_path):
    fit(net(), FedBABU(), folder=tmp_path, callbacks=[PersonalizationCallback(epochs=2)])
    assert not list(tmp_path.rglob("finetuning*"))
