"""FedImpro: what its loss does to gradients, how class moments merge, what it refuses."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fedlightning import APFL, Algorithm, FedAdam, FedAvg, FederatedModule, FedImpro, FedRoD
from fedlightning.algorithms import Aggregation, SharedFeatures
from fedlightning.algorithms.aggregation import CoordinateMedian
from fedlightning.errors import ConfigError, FederationError
from fedlightning.federation.uplink import ClipNorm, TopK
from tests.algorithms.cases import SIZES, Faulty
from tests.algorithms.one_client import update_of
from tests.algorithms.references.fedimpro import Given, TwoLayers, gradients, linear
from tests.toys import CLASSES, FEATURES, Net, data, fit, loop_of, net, same, state

SUMS = {f"fedimpro_sums/{name}" for name in ("count", "total", "squares")}
MOMENTS = {f"fedimpro/{name}" for name in ("mean", "variance", "known")}


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def classes(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, shape, generator=torch.Generator().manual_seed(seed))


def head_gradient(form: str, weight: float, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    hook = Given(form, weight, normal(8, 6, seed=50), classes(8, seed=50))
    module = TwoLayers(nn.Identity(), linear(normal(3, 6, seed=51)))
    return gradients(module, hook, x, y)[0]["head.weight"]


@pytest.mark.parametrize(("form", "ratio"), [("joint", 0.25), ("sum", 1.0)])
def test_the_joint_mean_quarters_the_dissimilarity_and_the_sum_leaves_it(form, ratio):
    def dissimilarity(weight: float) -> tuple[float, float]:
        clients = [(normal(8, 6, seed=s), classes(8, seed=s)) for s in range(4)]
        found = torch.stack([head_gradient(form, weight, x, y) for x, y in clients])
        squares = (found - found.mean(dim=0)).square().flatten(1).sum(dim=1)
        return float(squares.mean()), float(squares.sqrt().mean())

    (with_squares, with_norm), (squares, norm) = dissimilarity(1.0), dissimilarity(0.0)
    assert with_squares / squares == pytest.approx(ratio, abs=1e-10)
    assert with_norm / norm == pytest.approx(ratio**0.5, abs=1e-10)


def test_drawn_features_move_nothing_below_the_cut():
    low = nn.Sequential(linear(normal(6, 4, seed=1), normal(6, seed=2)), nn.ReLU())
    module = TwoLayers(low, linear(normal(3, 6, seed=3), normal(3, seed=4)))
    hook = Given("mixture", 1.0, normal(5, 6, seed=5), classes(5, seed=5))  # w = 1: no real loss
    found, loss = gradients(module, hook, normal(7, 4, seed=6), classes(7, seed=6))
    assert torch.equal(found["body.0.weight"], torch.zeros(6, 4, dtype=torch.float64))
    assert torch.equal(found["body.0.bias"], torch.zeros(6, dtype=torch.float64))
    weight, bias = normal(3, 6, seed=3).requires_grad_(), normal(3, seed=4)
    by_hand = F.cross_entropy(normal(5, 6, seed=5) @ weight.T + bias, classes(5, seed=5))
    (slope,) = torch.autograd.grad(by_hand, weight)
    assert torch.allclose(found["head.weight"], slope, rtol=0, atol=1e-12)
    assert float(loss) == pytest.approx(float(by_hand.detach()), abs=1e-12)


def sums_of(rows: list[float], labels: list[int]) -> dict[str, torch.Tensor]:
    """Return what a client with these features sends."""
    module = TwoLayers(nn.Identity(), linear(torch.zeros(3, 1, dtype=torch.float64)))
    x, y = torch.tensor(rows, dtype=torch.float64)[:, None], torch.tensor(labels)
    update, _ = update_of(module, FedImpro(), [(x, y)])
    assert update.extras.keys() == SUMS
    return dict(update.extras)


def merged(*clients: dict[str, torch.Tensor], state=None, momentum: float = 0.5) -> dict:
    extras = {key: sum(client[key] for client in clients) for key in SUMS}
    return FedImpro(momentum=momentum).local[0].on_aggregate(Aggregation(state or {}, extras))


def test_moments_of_clients_merge_to_those_of_all_their_examples():
    first, second, without = sums_of([1, 3], [0, 0]), sums_of([5], [0]), sums_of([9, 2], [1, 1])
    two, three = merged(first, second), merged(first, second, without)
    for result in (two, three):
        assert float(result["fedimpro/mean"][0]) == 3
        assert float(result["fedimpro/variance"][0]) == pytest.approx(8 / 3, abs=1e-12)
    assert two["fedimpro/known"].tolist() == [1, 0, 0]
    assert three["fedimpro/known"].tolist() == [1, 1, 0]
    assert float(three["fedimpro/variance"][1]) == pytest.approx(3.5**2, abs=1e-12)
    assert all(torch.isfinite(value).all() for value in three.values())


def test_old_moments_fade_and_those_of_a_class_that_nobody_had_stay():
    before = merged(sums_of([1, 3, 7], [0, 0, 1]))
    after = merged(sums_of([6, 10, 4], [0, 0, 2]), state=before, momentum=0.75)
    assert after["fedimpro/mean"].squeeze(1).tolist() == [0.75 * 2 + 0.25 * 8, 7.0, 4.0]
    assert after["fedimpro/variance"].squeeze(1).tolist() == [0.75 * 1 + 0.25 * 4, 0.0, 0.0]
    assert after["fedimpro/known"].tolist() == [1, 1, 1]


def test_noise_of_the_server_follows_from_the_round():
    (hook,) = FedImpro(noise=0.1).local
    extras = sums_of([1, 3, 7], [0, 0, 1])
    one, again, later = (hook.on_aggregate(Aggregation({}, extras, version=v)) for v in (4, 4, 5))
    assert same(one, again)
    assert not torch.equal(one["fedimpro/mean"], later["fedimpro/mean"])
    assert float((one["fedimpro/mean"][0] - 2).abs()) < 0.6
    assert (one["fedimpro/variance"] >= 0).all()


def by_hand_moments(module, some, cohort):
    """Return mean and biased variance, class by class, of the features of a cohort's examples."""
    pairs = [batch for client in cohort for batch in some.batches(client, "train")]
    x, y = torch.cat([x for x, _ in pairs]), torch.cat([y for _, y in pairs])
    with torch.no_grad():
        h = module.body(x).double()
    groups = [h[y == c] for c in range(CLASSES)]
    return [g.mean(dim=0) for g in groups], [g.var(dim=0, correction=0) for g in groups]


def test_a_round_leaves_the_moments_of_the_cohorts_features():
    module, some = net(lr=1e-30), data(SIZES)
    loop = loop_of(fit(module, FedImpro(momentum=0.0), rounds=2, datamodule=some))
    found = loop.server.state_dict()
    assert found.keys() == MOMENTS
    means, variances = by_hand_moments(module, some, range(4))
    for c in range(CLASSES):
        assert torch.allclose(found["fedimpro/mean"][c], means[c], atol=1e-6)
        assert torch.allclose(found["fedimpro/variance"][c], variances[c], atol=1e-6)


def test_messages_are_the_moments_down_and_the_sums_up():
    seen: list[dict] = []

    class Listening(FedImpro):
        def weight(self, update):
            seen.append(dict(update.extras))
            return super().weight(update)

    loop = loop_of(fit(net(), Listening(), rounds=2))
    assert all(extras.keys() == SUMS for extras in seen)
    assert seen[0]["fedimpro_sums/count"].shape == (CLASSES,)
    assert seen[0]["fedimpro_sums/total"].shape == (CLASSES, 5)
    assert set(loop.server.broadcast_extras) == MOMENTS
    assert len(loop.client_store) == 0


@pytest.mark.parametrize("form", ["joint", "sum", "mixture"])
def test_without_weight_it_is_fedavg_bit_for_bit(form):
    ours, plain = net(module=Faulty), net(module=Faulty)  # with dropout and BatchNorm
    fit(ours, FedImpro(form=form, weight=0.0), rounds=3, datamodule=data(SIZES))
    fit(plain, FedAvg(), rounds=3, datamodule=data(SIZES))
    assert same(state(ours), state(plain))
    other = net(module=Faulty)
    fit(other, FedImpro(form=form, weight=0.5), rounds=3, datamodule=data(SIZES))
    assert not same(state(other), state(plain))


def test_the_first_round_has_no_drawn_features_since_no_class_is_known():
    ours, plain = net(), net()
    fit(ours, FedImpro(), rounds=1)
    fit(plain, FedAvg(), rounds=1)
    assert same(state(ours), state(plain))


def test_a_ramp_ends():
    (hook,) = FedImpro(form="sum", weight=2.0, ramp_rounds=4).local
    assert [hook.weight_in(r) for r in (0, 1, 2, 4, 5, 400)] == [0, 0.5, 1, 2, 2, 2]


def test_labels_of_drawn_features():
    labels, known = torch.tensor([2, 0, 0, 1, -100]), torch.tensor([True, False, True])
    assert FedImpro().local[0].fake_labels(labels, known).tolist() == [2, 0, 0]
    balanced = FedImpro(fakes="balanced").local[0].fake_labels(labels, torch.ones(3).bool())
    assert sorted(balanced.tolist()) == [0, 0, 1, 1, 2, 2]  # C (N // C + 1) with N = 4, C = 3


def test_drawn_features_have_the_given_moments():
    mean, std = normal(2, 3, seed=1), normal(2, 3, seed=2).abs()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        drawn = FedImpro().local[0].draw(mean, std, torch.tensor([0, 1]).repeat(20_000))
    for c in range(2):
        assert torch.allclose(drawn[c::2].mean(dim=0), mean[c], atol=0.03)
        assert torch.allclose(drawn[c::2].std(dim=0), std[c], atol=0.03)


def test_a_client_does_not_change_what_the_server_has_sent():
    moments = {
        "fedimpro/mean": normal(3, 5).float(), "fedimpro/variance": normal(3, 5).abs().float(),
        "fedimpro/known": torch.ones(3, dtype=torch.long),
    }  # fmt: skip
    before = {key: value.clone() for key, value in moments.items()}
    x = normal(6, FEATURES).float()
    update_of(net(), FedImpro(), [(x, classes(6))], extras=moments)
    assert same(moments, before)


def test_real_and_drawn_features_are_normalised_together():
    class NormAbove(FederatedModule):
        def __init__(self) -> None:
            super().__init__(lr=0.1, momentum=0.0, lr_milestones=())
            self.body = nn.Linear(FEATURES, 5)
            self.head = nn.Sequential(nn.BatchNorm1d(5), nn.Linear(5, 3))

    module = net(module=NormAbove).double()
    hook = Given("joint", 1.0, 3 + normal(6, 5, seed=7), classes(6, seed=7))
    hook_x = normal(6, FEATURES, seed=8)
    together = torch.cat([module.body(hook_x).detach(), hook.features]).mean(dim=0)
    moments = {
        "fedimpro/mean": torch.zeros(3, 5), "fedimpro/variance": torch.ones(3, 5),
        "fedimpro/known": torch.ones(3, dtype=torch.long),
    }  # fmt: skip
    update, _ = update_of(
        module, Algorithm(local=[hook]), [(hook_x, classes(6, seed=8))], extras=moments
    )
    assert torch.allclose(update.state["head.0.running_mean"], 0.1 * together, atol=1e-12)


def test_a_layer_within_the_body_can_be_the_cut():
    loop = loop_of(fit(net(), FedImpro(cut="body.0"), rounds=2))
    assert loop.server.state_dict()["fedimpro/mean"].shape == (CLASSES, 5)


@pytest.mark.parametrize("uplink", [[ClipNorm(1.0)], [TopK(0.5)]], ids=str)
def test_it_goes_through_uplink_stages_with_a_server_optimizer(uplink):
    module = net()
    loop = loop_of(fit(module, FedImpro() + FedAdam(), rounds=3, federation={"uplink": uplink}))
    assert all(torch.isfinite(v).all() for v in loop.server.state_dict().values())
    assert not same(state(module), state(net()))


def test_what_cannot_be_is_refused_with_the_reason():
    for other in (APFL(), FedRoD()):
        with pytest.raises(ConfigError, match="each says how to train on a batch"):
            _ = FedImpro() + other
    with pytest.raises(ConfigError, match=r"CoordinateMedian cannot protect 'fedimpro_sums'"):
        fit(net(), FedImpro(), federation={"aggregator": CoordinateMedian()})
    with pytest.raises(ConfigError, match=r"accumulate_grad_batches=2"):
        fit(net(), FedImpro(), accumulate_grad_batches=2)
    with pytest.raises(ConfigError, match=r"form must be one of joint, sum, mixture, got 'jiont'"):
        FedImpro(form="jiont")
    with pytest.raises(ConfigError, match=r"weight must be in \[0, 1\], got 1.5"):
        FedImpro(form="mixture", weight=1.5)


class Past(Net):
    """Does not call itself."""

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self.head(self.body(x)), y)


class Regression(Net):
    def training_step(self, batch, batch_idx):
        return self(batch[0]).square().mean()


@pytest.mark.parametrize(
    ("module", "algorithm", "message"),
    [
        (Net, FedImpro(cut="encoder"), r"Net has no layer 'encoder' \(layers: body, head\)"),
        (Past, FedImpro(), r"cut='body': no features were seen; call self\(inputs\)"),
        (Net, FedImpro(cut="head.0"), "Net has no layer 'head.0'"),
    ],
)
def test_modules_that_do_not_fit_are_refused(module, algorithm, message):
    with pytest.raises((ConfigError, FederationError), match=message):
        fit(net(module=module), algorithm)


def test_labels_that_are_not_classes_are_refused():
    from fedlightning.datamodules import ClientDatasets

    pairs = [(torch.rand(6, FEATURES), torch.rand(6))] * 2
    some = ClientDatasets(pairs, pairs, batch_size=3)
    with pytest.raises((ConfigError, FederationError), match="FedImpro needs batches"):
        fit(net(module=Regression), FedImpro(), datamodule=some)


def test_equal_settings_are_equal():
    assert FedImpro() == FedImpro()
    assert FedImpro(cut="a") != FedImpro(cut="b")
    assert isinstance(FedImpro().local[0], SharedFeatures)
