"""FedProto against its formulas: the term, the merged prototypes, the nearest one predicts."""

from __future__ import annotations

import pytest
import torch

from fedlightning import FedProto, LocalOnly, PersonalizationCallback
from fedlightning.algorithms import NearestPrototype
from fedlightning.core.state import under
from fedlightning.errors import ConfigError
from fedlightning.personalization.models import client_predictor
from tests.algorithms.by_hand import (
    COHORTS,
    Sgd,
    assert_close,
    batches,
    clients,
    copy,
    features,
    gradient,
    loss,
    start,
    trained,
)
from tests.toys import Net, data, fit, net, same, state


def by_hand(strength):
    """Return the clients' models and prototypes and the common prototypes after three rounds."""
    first, models, own, common = state(start()), {}, {}, {}
    for round_, cohort in enumerate(COHORTS):
        sums, counts = {}, {}
        for client in cohort:
            w = models.setdefault(client, copy(first))
            optimizer = Sgd(w)

            def objective(a, batch, common=common):
                z, y = features(a, batch[0]), batch[1].tolist()
                away = [((z[i] - common[c]) ** 2).mean() for i, c in enumerate(y) if c in common]
                return loss(a, batch) + strength * sum(away) / len(y)

            for batch in batches(client, round_):
                optimizer.step(gradient(w, batch, of=objective))
            mine = {}
            for x, y in batches(client, round_, epochs=1):
                for z, label in zip(features(w, x), y.tolist(), strict=True):
                    mine.setdefault(label, []).append(z)
            for label, rows in mine.items():
                sums[label] = sums.get(label, 0) + sum(rows)
                counts[label] = counts.get(label, 0) + len(rows)
            own[client] = {**common, **{c: sum(rows) / len(rows) for c, rows in mine.items()}}
        common = {**common, **{c: total / counts[c] for c, total in sums.items()}}
    return models, own, common


@pytest.mark.parametrize("strength", [0.0, 1.0, 4.0])
def test_models_and_prototypes_are_those_of_the_formulas(strength):
    models, own, common = by_hand(strength)
    loop = trained(FedProto(strength))
    assert_close(
        under(loop.server.state_dict(), "fedproto"), {str(c): v for c, v in common.items()}
    )
    for client in range(4):
        assert_close(loop.personal_model(client), models[client])
        kept = under(loop.client_store.get(client), "fedproto")
        assert_close(kept, {str(c): v for c, v in own[client].items()})
    assert same(state(loop.module), state(start()))


def test_without_weight_the_models_are_those_of_local_training():
    one, other = trained(FedProto(0.0)), trained(LocalOnly())
    for client in range(4):
        assert same(one.personal_model(client), other.personal_model(client))


def test_a_client_predicts_the_class_of_the_nearest_prototype():
    models, own, _ = by_hand(1.0)
    callback = PersonalizationCallback(epochs=0)
    trained(FedProto(), callbacks=[callback])
    for result in callback.results:
        ((x, y),) = clients().batches(result.client, "test")
        z, protos = features(models[result.client], x), own[result.client]
        nearest = [min(protos, key=lambda c, v=v: float(((v - protos[c]) ** 2).sum())) for v in z]
        right = [label == int(c) for label, c in zip(nearest, y, strict=True)]
        assert result.before["acc"] == pytest.approx(sum(right) / 4)


def test_a_class_without_a_prototype_is_the_last_choice():
    module = net()
    with torch.no_grad():
        z = module.body(x := torch.randn(3, 4))
    rule = NearestPrototype(module, "body", {"2": z[0], "0": z[0] + 1.0})
    with torch.no_grad():
        scores = rule.predict(x)
    assert scores[0].tolist() == pytest.approx([-5.0, -6.0, 0.0], abs=1e-5)
    assert (scores[:, 1] < scores[:, [0, 2]].amin(dim=1)).all()


def test_it_is_saved_and_loaded(tmp_path):
    callback = PersonalizationCallback(epochs=0)
    some = data()
    built = fit(net(), FedProto(), datamodule=some, folder=tmp_path, callbacks=[callback])
    for client in range(4):
        rule = client_predictor(built.log_dir, client, net(seed=5), FedProto())
        ((x, y),) = some.batches(client, "test")
        with torch.no_grad():
            accuracy = float((rule.predict(x).argmax(dim=1) == y).double().mean())
        assert accuracy == pytest.approx(callback.results[client].after["acc"])


def test_labels_that_are_no_classes_are_refused():
    class Regression(Net):
        def training_step(self, batch, batch_idx):
            return (self(batch[0]) - batch[1][:, None]).square().mean()

        def test_step(self, batch, batch_idx):
            pass

    pairs = [(torch.randn(6, 4), torch.rand(6)) for _ in range(4)]
    numbers = type(data())(train=pairs, test=pairs, batch_size=4)
    with pytest.raises(ConfigError, match=r"FedProto needs batches \(inputs, labels\) with one cl"):
        fit(net(module=Regression), FedProto(), datamodule=numbers)
