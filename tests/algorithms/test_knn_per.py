"""kNN-Per against its formula, with plain loops over examples."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from fedlightning import FedAvg, FedProto, KNNPer, LocalOnly, PersonalizationCallback
from fedlightning.errors import ConfigError
from fedlightning.personalization.models import client_predictor
from tests.algorithms.by_hand import SIZES, clients, features, logits, start, trained
from tests.toys import data, fit, loop_of, net, same, state


def by_hand(w, stored, x, weight, k, scale):
    """Return the probabilities of three classes of one example."""
    z = features(w, x[None])[0]
    away = []
    for example, label in stored:
        other = features(w, example[None])[0]
        away.append((sum(float(a - b) ** 2 for a, b in zip(z, other, strict=True)), int(label)))
    votes = [0.0, 0.0, 0.0]
    for squared, label in sorted(away)[:k]:
        votes[label] += math.exp(-squared / (len(z) * scale))
    own = [math.exp(float(value)) for value in logits(w, x[None])[0]]
    return [
        weight * vote / sum(votes) + (1 - weight) * p / sum(own)
        for vote, p in zip(votes, own, strict=True)
    ]


def examples_of(client, split):
    x, y = zip(*clients().batches(client, split), strict=True)
    return torch.cat(x), torch.cat(y)


@pytest.mark.parametrize(("weight", "k", "scale"), [(0.5, 3, 1.0), (0.9, 10, 0.1), (0.0, 1, 1.0)])
@pytest.mark.parametrize("epochs", [0, 2])
def test_a_client_predicts_with_the_formula(weight, k, scale, epochs):
    callback = PersonalizationCallback(part="full", epochs=epochs, lr=0.5)
    module = start()
    loop = trained(KNNPer(weight, k, scale), module, rounds=1, callbacks=[callback])
    for result in callback.results:
        with callback.personalizer(loop.trainer).at_work() as personalizer:
            personalizer.client(result.client)
            w = state(module)
        stored = list(zip(*examples_of(result.client, "train"), strict=True))
        assert len(stored) == SIZES[result.client]
        x, y = examples_of(result.client, "test")
        losses = [
            -math.log(by_hand(w, stored, one, weight, k, scale)[int(label)])
            for one, label in zip(x, y, strict=True)
        ]
        assert result.after["loss"] == pytest.approx(sum(losses) / 4, rel=1e-9)


def test_training_is_fedavg_and_nothing_is_kept_or_sent():
    one, other = net(), net()
    loop = loop_of(fit(one, KNNPer()))
    fit(other, FedAvg())
    assert same(state(one), state(other))
    assert len(loop.client_store) == 0
    assert loop.server.state_dict() == {}


def test_a_client_that_never_trained_has_neighbours_too():
    callback = PersonalizationCallback(epochs=0)
    some = data()
    built = fit(
        net(), KNNPer(weight=1.0, k=1), rounds=1, cohort=1, datamodule=some, callbacks=[callback]
    )
    module = built.lightning_module.eval()
    for result in callback.results:
        ((x, y),) = some.batches(result.client, "test")
        train = [torch.cat(t) for t in zip(*some.batches(result.client, "train"), strict=True)]
        with torch.no_grad():
            away = torch.cdist(module.body(x), module.body(train[0]))
        nearest = train[1][away.argmin(dim=1)]
        assert result.before["acc"] == pytest.approx(float((nearest == y).double().mean()))


def test_it_is_saved_and_loaded(tmp_path):
    callback = PersonalizationCallback(epochs=2, lr=0.5)
    some = data()
    built = fit(net(), KNNPer(k=3), datamodule=some, folder=tmp_path, callbacks=[callback])
    for client in range(4):
        rule = client_predictor(built.log_dir, client, net(seed=5), KNNPer(k=3))
        ((x, y),) = some.batches(client, "test")
        with torch.no_grad():
            loss = float(F.nll_loss(rule.predict(x), y))
        assert loss == pytest.approx(callback.results[client].after["loss"], rel=1e-5)


def test_only_one_hook_says_what_a_client_predicts_with():
    with pytest.raises(ConfigError, match="each says what a client predicts with"):
        _ = KNNPer() + FedProto()
    assert (KNNPer() + LocalOnly()).share == "none"
