"""`check_data: false`: what is looked for by default, and let through where it is switched off."""

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from fedlightning import FedAvg, PersonalizationCallback
from fedlightning.datamodules import (
    IID,
    ClientDatasets,
    FederatedArrays,
    FederatedDataset,
    GeneratedClients,
)
from fedlightning.errors import DataError, FederationError
from tests.toys import data, examples, fit, net, same, state


def pair(label=0, value=0.0):
    """Return nine examples; the first one's label and first feature are given."""
    x, y = examples(9, seed=0)
    x[0, 0], y[0] = value, label
    return x, y


class Torn(Dataset):
    def __len__(self):
        return 9

    def __getitem__(self, index):
        if index == 4:
            raise OSError("torn image")
        return torch.zeros(4), index % 3


def arrays(pair, **options):
    return FederatedArrays(pair, pair, num_clients=3, partition=IID(), num_classes=3, **options)


def separate(pair, **options):
    return ClientDatasets([pair] * 3, [pair] * 3, num_classes=3, **options)


def made(pair, **options):
    return GeneratedClients(lambda client, split: pair, 3, num_classes=3, **options)


@pytest.mark.parametrize("build", [arrays, separate, made])
@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"label": 3}, r"client \d, sample 0: label 3 not in \[0, 3\)"),
        ({"label": -100}, r"client \d, sample 0: label -100 not in \[0, 3\)"),
        ({"value": float("nan")}, r"client \d, sample 0: non-finite"),
    ],
)
def test_bad_data_are_refused_unless_the_check_is_off(build, bad, message):
    with pytest.raises(DataError, match=message):
        build(pair(**bad)).setup()
    unchecked = build(pair(**bad), check_data=False)
    unchecked.setup()
    assert sum(unchecked.num_examples(client) for client in range(3)) in (9, 27)


def test_an_item_that_raises_is_its_clients_failure_if_nobody_has_checked():
    with pytest.raises(FederationError, match=r"client \d, sample 4: OSError: torn image"):
        FederatedDataset(Torn(), Torn(), num_clients=3).setup()
    unchecked = FederatedDataset(Torn(), Torn(), num_clients=3, check_data=False)
    unchecked.setup()
    (owner,) = (c for c in range(3) if 4 in unchecked.indices(c))
    with pytest.raises(FederationError, match=f"client {owner}, sample 4: OSError: torn image"):
        list(unchecked.batches(owner, "train"))


def test_labels_that_the_loss_ignores_can_be_trained_personalised_and_written(tmp_path):
    unchecked = arrays(pair(label=-100), check_data=False, batch_size=3)
    personal = PersonalizationCallback(epochs=1)
    built = fit(net(), FedAvg(), datamodule=unchecked, folder=tmp_path, callbacks=[personal])
    assert built.current_epoch == 2
    assert len(personal.records) == 3
    assert unchecked.partition_table().sum() == 8
    assert np.isfinite([record.loss_after for record in personal.records]).all()


def test_a_number_that_is_not_finite_is_noticed_in_training():
    unchecked = arrays(pair(value=float("inf")), check_data=False, batch_size=3)
    with pytest.raises(FederationError, match=r"client \d, round 0: .* non-finite"):
        fit(net(), FedAvg(), datamodule=unchecked)


def test_a_run_goes_on_with_the_check_switched_off(tmp_path):
    whole, half, resumed = (net(seed=seed, lr_milestones=()) for seed in (0, 0, 9))
    fit(whole, FedAvg(), rounds=3, folder=tmp_path / "whole")
    fit(half, FedAvg(), rounds=2, folder=tmp_path / "half")
    fit(
        resumed, FedAvg(), rounds=3, folder=tmp_path / "half",
        datamodule=data(check_data=False), ckpt=next((tmp_path / "half").rglob("last.ckpt")),
    )  # fmt: skip
    assert same(state(whole), state(resumed))
