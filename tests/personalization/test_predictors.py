"""A client may predict with a rule over two models; it is evaluated, saved and loaded as such."""

from __future__ import annotations

import pytest
import torch
from torch.func import functional_call
from torch.nn import functional as F

from fedlightning import Algorithm, FedAvg, FedBABU, PersonalizationCallback
from fedlightning.algorithms import ClientHook
from fedlightning.core.predictors import StatePredictor
from fedlightning.core.state import under
from fedlightning.errors import ConfigError
from fedlightning.personalization.models import client_model, client_predictor
from tests.toys import Net, data, fit, loop_of, net, state


class Averaged:
    """The mean of the logits of the network and of the network with another head."""

    def __init__(self, module, head):
        self.module, self.head = module, head

    def predict(self, inputs):
        other = functional_call(self.module, self.head, (inputs,))
        return (self.module(inputs) + other) / 2

    def state_dict(self):
        return {f"two/{key}": value for key, value in self.head.items()}


class TwoHeads(ClientHook):
    """Keeps the trained head at the client, which predicts with it and the module together."""

    personal_model = True

    def on_update_end(self, context):
        head = {key: value for key, value in context.trained_state().items() if "head" in key}
        context.keep("two", head)

    def predictor(self, kept, module):
        head = under(kept, "two")
        return Averaged(module, head) if head else None


ALGORITHM = Algorithm(local=[TwoHeads()])


def by_hand(weights, head, x):
    """Return both heads' mean logits, written out."""
    hidden = F.relu(F.linear(x, weights["body.0.weight"], weights["body.0.bias"]))
    one = F.linear(hidden, weights["head.weight"], weights["head.bias"])
    two = F.linear(hidden, head["head.weight"], head["head.bias"])
    return (one + two) / 2


def accuracy(logits, y):
    return float((logits.argmax(1) == y).double().mean())


def test_accuracy_before_and_after_is_that_of_both_heads():
    module, some = net(), data((8, 6, 7, 9))
    callback = PersonalizationCallback(epochs=3, lr=0.5, part="head", curve=True)
    built = fit(module, ALGORITHM, rounds=3, datamodule=some, callbacks=[callback])
    model, loop = state(module), loop_of(built)
    differs = 0
    for result in callback.results:
        head = under(loop.client_store.get(result.client), "two")
        ((x, y),) = some.batches(result.client, "test")
        assert result.before["acc"] == pytest.approx(accuracy(by_hand(model, head, x), y))
        with callback.personalizer(built).at_work() as personalizer:
            personalizer.client(result.client)
            tuned = state(module)
        expected = by_hand(tuned, head, x)
        assert result.after["acc"] == pytest.approx(accuracy(expected, y))
        assert result.after["loss"] == pytest.approx(float(F.cross_entropy(expected, y)), rel=1e-5)
        alone = float(F.cross_entropy(by_hand(tuned, tuned, x), y))
        differs += result.after["loss"] != pytest.approx(alone, rel=1e-3)
    assert differs == 4
    assert "forward" not in vars(module)
    mean = sum(result.after["acc"] for result in callback.results) / 4
    assert float(built.callback_metrics["personalized/acc"]) == pytest.approx(mean)


def test_a_client_that_never_trained_predicts_with_the_module():
    module, some = net(), data()
    callback = PersonalizationCallback(epochs=0)
    built = fit(module, ALGORITHM, rounds=1, cohort=1, datamodule=some, callbacks=[callback])
    idle = next(c for c in range(4) if loop_of(built).client_store.get(c) is None)
    ((x, y),) = some.batches(idle, "test")
    with torch.no_grad():
        expected = float(F.cross_entropy(module.eval()(x), y))
    assert callback.results[idle].after["loss"] == pytest.approx(expected)


def test_it_is_saved_and_loaded_as_a_predictor(tmp_path):
    module, some = net(), data()
    callback = PersonalizationCallback(epochs=2, lr=0.5)
    built = fit(module, ALGORITHM, datamodule=some, folder=tmp_path, callbacks=[callback])
    ((x, y),) = some.batches(1, "test")
    predictor = client_predictor(built.log_dir, 1, net(seed=5), ALGORITHM)
    with torch.no_grad():
        loss = float(F.cross_entropy(predictor.predict(x), y))
    assert loss == pytest.approx(callback.results[1].after["loss"], rel=1e-6)
    with pytest.raises(ConfigError, match=r"load it with client_predictor\(run, client"):
        client_model(built.log_dir, 1, net(seed=5))
    with pytest.raises(ConfigError, match="FedAvg has no rule for that"):
        client_predictor(built.log_dir, 1, net(seed=5), FedAvg())


def test_a_state_over_the_global_one_is_a_predictor_too(tmp_path):
    callback = PersonalizationCallback(epochs=2, lr=0.5)
    built = fit(net(), FedBABU(), folder=tmp_path, callbacks=[callback])
    predictor = client_predictor(built.log_dir, 1, net(seed=5), FedBABU())
    assert isinstance(predictor, StatePredictor)
    assert predictor.state_dict().keys() == {"head.weight", "head.bias"}
    ((x, y),) = data_of(built).batches(1, "test")
    with torch.no_grad():
        loss = float(F.cross_entropy(predictor.predict(x), y))
    assert loss == pytest.approx(callback.results[1].after["loss"], rel=1e-6)


def data_of(built):
    return loop_of(built).data


def test_a_step_that_goes_past_the_predictor_is_refused():
    class Past(Net):
        def test_step(self, batch, batch_idx):
            x, y = batch
            self.log("global/loss", F.cross_entropy(self.head(self.body(x)), y))

    with pytest.raises(ConfigError, match=r"Averaged, which predicts in its place, was not asked"):
        fit(net(module=Past), ALGORITHM, callbacks=[PersonalizationCallback(epochs=1)])
