"""`PredictionWriter` in a program of one's own."""

import csv

import pytest
import torch

from fedlightning import FederatedTrainer
from fedlightning.callbacks.predictions import PredictionWriter
from fedlightning.datamodules import ClientDatasets
from fedlightning.errors import ConfigError
from fedlightning.models import MLP


def returns(what):
    """Return a model that predicts whatever it is told to."""

    class Returns(MLP):
        def predict_step(self, batch, batch_idx):
            return what(len(batch[0]))

    return Returns(in_features=2, hidden=[2], num_classes=3)


def predict(tmp_path, model, data, **settings):
    settings = {"enable_progress_bar": False, "callbacks": [PredictionWriter()], **settings}
    trainer = FederatedTrainer(default_root_dir=tmp_path, **settings)
    trainer.predict(model, datamodule=data, return_predictions=False)
    (path,) = tmp_path.glob("lightning_logs/*/predictions.csv")
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def datasets(labels=((0, 1, 2), (1, 1))):
    pairs = [
        torch.utils.data.TensorDataset(torch.zeros(len(ys), 2), torch.tensor(ys)) for ys in labels
    ]
    return ClientDatasets(pairs, pairs, batch_size=2, eval_batch_size=2)


def test_logits_become_probabilities(tmp_path):
    logits = torch.log(torch.tensor([0.2, 0.7, 0.1])) + 5
    rows = predict(tmp_path, returns(lambda n: logits.repeat(n, 1)), datasets())
    assert [row["client_id"] for row in rows] == ["0", "0", "0", "1", "1"]
    assert [row["sample"] for row in rows] == ["0", "1", "2", "3", "4"]
    assert [row["label"] for row in rows] == ["0", "1", "2", "1", "1"]
    assert {row["prediction"] for row in rows} == {"1"}
    assert {row["probability"] for row in rows} == {"0.7"}


def test_probabilities_stay_as_they_are(tmp_path, capsys):
    rows = predict(tmp_path, returns(lambda n: torch.tensor([[0.2, 0.7, 0.1]] * n)), datasets())
    assert {row["probability"] for row in rows} == {"0.7"}
    out = capsys.readouterr().out
    assert "5 predictions: " in out
    assert "accuracy of the global model: 60.0 %" in out


def test_one_number_an_example_has_no_probability(tmp_path):
    rows = predict(tmp_path, returns(lambda n: torch.full((n,), 2)), datasets())
    assert {(row["prediction"], row["probability"]) for row in rows} == {("2", "")}


def test_a_limit_leaves_the_rest_out(tmp_path):
    model = returns(lambda n: torch.full((n,), 2))
    rows = predict(tmp_path, model, datasets(), limit_predict_batches=1)
    assert [row["sample"] for row in rows] == ["0", "1"]


def test_anything_else_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"Returns.predict_step must return .* got \(2, 1, 1\)"):
        predict(tmp_path, returns(lambda n: torch.zeros(n, 1, 1)), datasets())
