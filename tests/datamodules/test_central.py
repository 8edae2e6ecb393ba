"""A central test set each round beside the clients' own, and modules that wrap others."""

import csv

import pytest
import torch

from fedlightning import FedAvg, FederatedTrainer, Federation, PersonalizationCallback
from fedlightning.core.views import CENTRAL
from fedlightning.datamodules import CentralTest, ClientDatasets, PermutedLabels, PublicShare
from tests.toys import examples, net

NAMES = ("charite", "mayo")
CENTRAL_SET = examples(9, 50)


def clients():
    return ClientDatasets(
        {name: examples(8, at) for at, name in enumerate(NAMES)},
        {name: examples(5, 10 + at) for at, name in enumerate(NAMES)},
        num_classes=3, batch_size=4,
    )  # fmt: skip


def test_the_global_model_is_measured_on_it_each_round(tmp_path, capsys):
    module = net()
    trainer = FederatedTrainer(
        federation=Federation(FedAvg(), cohort_size=1.0, seed=0), max_epochs=2,
        default_root_dir=tmp_path, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[PersonalizationCallback(epochs=1)],
    )  # fmt: skip
    trainer.fit(module, datamodule=CentralTest(clients(), CENTRAL_SET))
    with next(tmp_path.rglob("metrics.csv")).open() as file:
        rows = list(csv.DictReader(file))
    assert all(row["central/global/acc"] and row["global/acc"] for row in rows)
    x, y = CENTRAL_SET
    with torch.no_grad():
        right = (module.eval()(x).argmax(dim=1) == y).float().mean().item()
    assert float(rows[-1]["central/global/acc"]) == pytest.approx(right)
    assert "accuracy on central data, which belongs to no client" in capsys.readouterr().out
    assert "charite" in next(tmp_path.rglob("clients.csv")).read_text()


@pytest.mark.parametrize("wrap", [
    lambda data: CentralTest(data, CENTRAL_SET),
    lambda data: PermutedLabels(data, classes=2),
    lambda data: PublicShare(data, fraction=0.2),
])  # fmt: skip
def test_a_module_around_another_keeps_the_names(wrap):
    data = wrap(clients())
    data.setup()
    assert tuple(data.client_names) == NAMES
    assert data.clients_called(["mayo"]) == [1]


def test_a_dataset_and_several_inputs():
    x, y = CENTRAL_SET
    pairs = torch.utils.data.TensorDataset(x, y)
    for given in (pairs, ({"x": x}, y)):
        data = CentralTest(clients(), given)
        data.setup()
        assert data.num_examples(CENTRAL, "central") == 9
