"""FedVI: divergences, support and queries, nothing kept, predictors of clients never seen."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence
from torch.nn import functional as F

from fedlightning import (
    SCAFFOLD,
    Ditto,
    FedAvg,
    FedBN,
    FedPer,
    FedRes,
    FedVI,
    PersonalizationCallback,
)
from fedlightning.algorithms import Algorithm, AmortizedHead, KeptOptimizer
from fedlightning.core.gaussian import DiagonalGaussian
from fedlightning.datamodules import Digits, FewClasses
from fedlightning.errors import ConfigError
from fedlightning.federation.uplink import TopK
from fedlightning.models import VariationalMLP
from fedlightning.personalization.models import client_predictor
from tests.toys import CLASSES, FEATURES, data, examples, fit, loop_of, net, same, state, trainer


def network(seed: int = 0, **kwargs: Any) -> Any:
    settings = {"in_features": FEATURES, "hidden": [5], "num_classes": CLASSES,
                "constructor_hidden": 6, "lr": 0.1, "lr_milestones": (), **kwargs}  # fmt: skip
    return net(seed, module=VariationalMLP, **settings)


def trained(seed: int = 0, **kwargs: Any) -> Any:
    module = network(seed)
    fit(module, FedVI(**kwargs), rounds=6, federation={"local_epochs": 3})
    return module.eval()


def test_divergences_are_those_of_the_textbook():
    one = DiagonalGaussian(torch.ones(1), torch.full((1,), 0.5))
    unit = DiagonalGaussian(torch.zeros(1), torch.ones(1))
    assert one.kl(unit).item() == pytest.approx(0.818147, abs=1e-6)
    assert one.kl(one).item() == 0
    generator = torch.Generator().manual_seed(0)
    m, n = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64)
    s, t = torch.rand(2, 3, 4, generator=generator, dtype=torch.float64) + 0.1
    want = kl_divergence(Normal(m, s), Normal(n, t)).sum()
    assert DiagonalGaussian(m, s).kl(DiagonalGaussian(n, t)).item() == pytest.approx(
        want.item(), abs=1e-12
    )


def test_the_posterior_starts_as_the_prior_and_a_class_without_support_keeps_it():
    x, y = torch.rand(6, FEATURES), torch.tensor([0, 0, 2, 2, 2, 2])
    module = network(seed=1)
    assert torch.equal(module.posterior(x, y).mean, module.prior.mean)
    assert torch.equal(module.posterior(x, y).std, module.prior.std)
    module = trained()
    with torch.no_grad():
        posterior, prior = module.posterior(x, y), module.prior
    assert torch.equal(posterior.mean[1], prior.mean[1])
    assert torch.equal(posterior.std[1], prior.std[1])
    assert (posterior.mean[[0, 2]] != prior.mean[[0, 2]]).any(dim=1).all()
    assert posterior.kl(prior).item() > 0


def test_the_order_of_the_support_set_does_not_matter():
    module = trained().double()
    x, y = examples(20, seed=5)
    x, order = x.double(), torch.randperm(20, generator=torch.Generator().manual_seed(0))
    one, other = module.posterior(x, y), module.posterior(x[order], y[order])
    assert torch.allclose(one.mean, other.mean, rtol=0, atol=1e-14)
    assert torch.allclose(one.std, other.std, rtol=0, atol=1e-14)


class Splits(AmortizedHead):
    """Notes the inputs of every support set and of the queries that go with it."""

    def __init__(self, seen: list[Any], support: float = 0.5) -> None:
        super().__init__(support=support)
        self.seen = seen

    def on_update_start(self, context: Any) -> None:
        super().on_update_start(context)
        posterior = context.module.posterior

        def noting(x: Tensor, y: Tensor) -> Any:
            self.seen.append([x.clone(), y.clone()])
            return posterior(x, y)

        context.module.posterior = noting

    def on_loss(self, context: Any, batch: Any, loss: Tensor) -> Tensor:
        self.seen[-1] += [batch[0].clone(), batch[1].clone()]
        return super().on_loss(context, batch, loss)


@pytest.mark.parametrize(("share", "support"), [(0.5, 2), (0.25, 1), (0.9, 3)])
def test_support_and_queries_are_a_batch_and_do_not_overlap(share, support):
    seen: list[Any] = []
    clients = data((8, 4, 8))
    fit(network(), Algorithm(local=[Splits(seen, share)]), rounds=1, datamodule=clients)
    assert len(seen) == 2 + 1 + 2
    stored = {tuple(row) for client in range(3) for x, _ in clients.batches(client, "train")
              for row in x.tolist()}  # fmt: skip
    for x, y, queries, answers in seen:
        assert (len(x), len(y), len(queries), len(answers)) == (support, support, 4 - support,
                                                                4 - support)  # fmt: skip
        rows = [tuple(row) for row in (*x.tolist(), *queries.tolist())]
        assert len(set(rows)) == 4
        assert set(rows) <= stored


def test_a_single_example_is_a_query():
    hook = AmortizedHead(support=0.5)
    assert [hook.support_size(n) for n in (1, 2, 3, 5)] == [0, 1, 2, 2]
    fit(module := network(), FedVI(), rounds=1, datamodule=data((1, 5)))
    assert all(torch.isfinite(value).all() for value in state(module).values())


def test_every_parameter_learns_also_through_the_support_set():
    module = trained()
    start, now = state(network()), state(module)
    assert all(not torch.equal(start[key], now[key]) for key in start)
    x, y = examples(6, seed=3)
    body = list(module.body.parameters())
    found = torch.autograd.grad(module.posterior(x, y).mean.square().sum(), body)
    assert all(gradient.abs().sum() > 0 for gradient in found)


def test_switched_off_it_is_fedavg_bit_for_bit():
    def frozen() -> Any:
        module = network()
        for parameter in (*module.constructor.parameters(), module.prior_mean, module.prior_scale):
            parameter.requires_grad_(False)
        return module

    ours, plain = frozen(), frozen()
    fit(ours, FedVI(tau=0.0, support=0.0, sampled=False), federation={"local_epochs": 2})
    fit(plain, FedAvg(), federation={"local_epochs": 2})
    assert same(state(ours), state(plain))
    assert not same(state(ours), state(network()))


def test_a_heavy_divergence_leaves_the_prior_and_predictions_without_support():
    def distance(tau: float) -> float:
        module = network(lr=1e-3, momentum=0.0).double()
        clients = data((8, 6, 7))
        clients.setup()
        made = [(x.double(), y) for c in range(3) for x, y in clients.batches(c, "test")]
        doubled = type(clients)(train=made, test=made, num_classes=CLASSES, batch_size=4)
        fit(module, FedVI(tau=tau), rounds=30, datamodule=doubled, federation={"local_epochs": 4})
        x, y = made[0]
        with torch.no_grad(), module.with_local_head(module.posterior(x, y).mean):
            served = module(x)
        with torch.no_grad():
            return float((served - module(x)).abs().max())

    light, heavy = distance(0.0), distance(30.0)
    assert light > 1e-4
    assert heavy < light / 50


def test_nothing_is_kept_and_no_file_is_written(tmp_path):
    built = fit(network(), FedVI(), folder=tmp_path, cohort=2)
    assert len(loop_of(built).client_store) == 0
    assert not list(tmp_path.rglob("personal*"))


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (FedPer(), "lets clients keep nothing, and with share='body' they would keep"),
        (FedBN(), "lets clients keep nothing, and with share='full - norm' they would keep"),
        (Ditto(), "OwnModel keeps a model, AmortizedHead lets nothing be kept"),
        (FedRes(private="head"), "each says how to train on a batch"),
    ],
    ids=str,
)
def test_algorithms_that_keep_parts_are_refused(other, reason):
    with pytest.raises(ConfigError, match=reason):
        _ = FedVI() + other


@pytest.mark.parametrize(
    ("algorithm", "settings", "kept"),
    [
        (FedVI() + SCAFFOLD(), {}, "scaffold/"),
        (FedVI() + Algorithm(local=[KeptOptimizer()]), {}, "fedres_optimizer/"),
        (FedVI(), {"compression": TopK(0.5)}, "compression/"),
    ],
)
def test_whoever_wants_to_keep_something_is_refused_whatever_the_policy(algorithm, settings, kept):
    settings = {"on_client_failure": "skip", **settings}
    with pytest.raises(ConfigError, match=rf"lets clients keep nothing, and \S*{kept}\S* would"):
        fit(network(), algorithm, federation=settings)


@pytest.mark.parametrize("compression", [TopK(0.5, error_feedback=False), None])
def test_what_keeps_nothing_goes_with_it(compression):
    fit(module := network(), FedVI(), federation={"compression": compression})
    assert all(torch.isfinite(value).all() for value in state(module).values())


def test_a_network_without_local_heads_is_refused():
    with pytest.raises(ConfigError, match=r"and Net does not; take VariationalMLP"):
        fit(net(), FedVI())


def test_batches_without_classes_are_refused():
    class Regression(VariationalMLP):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return (self(batch[0])[:, 0] - batch[1]).square().mean()

    clients = data()
    clients.setup()
    made = [(x, x[:, 0]) for x, _ in clients.batches(0, "train")]
    real = type(clients)(train=made, test=made)
    module = net(module=Regression, in_features=FEATURES, hidden=[5], num_classes=CLASSES)
    with pytest.raises(ConfigError, match="one class per example"):
        fit(module, FedVI(), datamodule=real, limit_val_batches=0)


def few(**kwargs: Any) -> FewClasses:
    settings = {"num_clients": 34, "held_out_clients": 4, "num_test": 40, "swapped": 2,
                "batch_size": 20, "seed": 0, **kwargs}  # fmt: skip
    return FewClasses(Digits(seed=0), **settings)


def digits(**kwargs: Any) -> Any:
    settings = {"lr": 0.05, "prior_std": 0.2, "lr_milestones": (), **kwargs}
    return net(module=VariationalMLP, in_features=64, hidden=[32], **settings)


def by_hand(module: Any, clients: FewClasses, client: int, supporter: int) -> float:
    """Return the accuracy of a client's queries given a client's support set."""
    (x, y), (queries, answers) = (
        tuple(torch.cat(part) for part in zip(*clients.batches(c, split), strict=True))
        for c, split in ((supporter, "train"), (client, "test"))
    )
    with torch.no_grad():
        e = module.body(x)
        rows = []
        for c in range(10):
            own = e[y == c]
            given = torch.cat([own.mean(dim=0), torch.tensor([float(len(own))]).log1p()])
            moved = module.constructor.layers(given)[: e.shape[1]] if len(own) else 0.0
            rows.append(module.prior_mean[c] + moved)
        logits = module.body(queries) @ torch.stack(rows).T + module.head(module.body(queries))
    return float((logits.argmax(dim=1) == answers).float().mean())


def test_newcomers_predict_with_their_own_support_sets(tmp_path):
    module, clients = digits(), few()
    callback = PersonalizationCallback(epochs=0, nearest_mean=False)
    built = trainer(FedVI(), rounds=60, cohort=4, folder=tmp_path, callbacks=[callback],
                    gradient_clip_val=5.0, limit_val_batches=0,
                    federation={"local_epochs": 2})  # fmt: skip
    built.fit(module, datamodule=clients)
    (view,) = [each for each in callback.views if each.view.name == "held_out"]
    assert len(view.results) == 4
    new = clients.held_out_ids.tolist()
    for result in [*view.results, *callback.results]:
        own = by_hand(module, clients, result.client, result.client)
        assert result.record.acc_before == pytest.approx(own, abs=1e-6)
    others = [by_hand(module, clients, a, b) for a, b in zip(new, new[1:] + new[:1], strict=True)]
    mean = sum(r.record.acc_before for r in view.results) / 4
    assert mean > 0.5
    assert sum(others) / 4 < mean - 0.15
    predictor = client_predictor(built.log_dir, new[0], digits(), FedVI())
    x, y = next(clients.batches(new[0], "test"))
    hits = (predictor.predict(x).argmax(dim=1) == y).float().mean()
    assert float(hits) == pytest.approx(view.results[0].record.acc_before, abs=1e-6)


def test_without_a_support_set_the_network_predicts_with_the_priors_mean():
    module = trained()
    x = torch.rand(7, FEATURES)
    with torch.no_grad():
        e = F.relu(x @ module.body[1].weight.T + module.body[1].bias)
        want = e @ (module.head.weight + module.prior_mean).T + module.head.bias
        assert torch.allclose(module(x), want, atol=1e-6)
    hook = FedVI().hooks[0]
    assert hook.adapt([], module) == {}
    assert hook.predictor({}, module) is None


@pytest.mark.parametrize("settings", [{"tau": -1}, {"support": 1.0}, {"support": -0.1}])
def test_numbers_out_of_range_are_refused(settings):
    with pytest.raises(ConfigError, match=rf"algorithm\.{next(iter(settings))}"):
        FedVI(**settings)
