"""PerInvFL: its terms, how its three models move, what stays with a client."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fedlightning import (
    SCAFFOLD,
    Ditto,
    FedAvg,
    FederatedModule,
    FedProx,
    PerFedAvg,
    PerInvFL,
    PersonalizationCallback,
)
from fedlightning.algorithms.perinvfl import contrast, invariance_penalty
from fedlightning.errors import ConfigError
from tests.algorithms.cases import SIZES, Faulty
from tests.algorithms.one_client import update_of
from tests.toys import FEATURES, Net, data, fit, loop_of, net, same, state


class Adams(Net):
    """With Adam, as the authors train."""

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=5e-3)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_penalty_of_one_example():
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    logits = torch.tensor([[2.0, 0.0]], dtype=torch.float64, requires_grad=True)
    loss = F.cross_entropy(scale * logits, torch.tensor([0]))
    (slope,) = torch.autograd.grad(loss, scale, retain_graph=True)
    assert float(slope) == pytest.approx(-2 / (1 + math.e**2), abs=1e-12)  # -0.238406
    penalty = invariance_penalty(loss, scale)
    assert float(penalty.detach()) == pytest.approx(0.056837, abs=5e-7)
    (second,) = torch.autograd.grad(penalty, logits)

    def by_hand(a: float) -> float:  # of logits (a, 0): d/ds log(1 + e^{-s a}) = -a / (1 + e^a)
        return (a / (1 + math.exp(a))) ** 2

    assert float(second[0, 0]) == pytest.approx((by_hand(2 + 1e-6) - by_hand(2 - 1e-6)) / 2e-6)


@pytest.mark.parametrize(
    ("far", "value"), [([0.0, 1.0], 0.070995), ([1.0, 0.0], 0.182322), ([-1.0, 0.0], 0.026707)]
)
def test_the_contrastive_term_where_the_personal_features_are_the_shared_ones(far, value):
    z = torch.tensor([[1.0, 0.0]], dtype=torch.float64, requires_grad=True)
    term = contrast(z, z.detach(), torch.tensor([far], dtype=torch.float64))
    assert float(term.detach()) == pytest.approx(value, abs=5e-7)


def test_the_pull_alone_has_no_gradient_there_and_has_one_elsewhere():
    near, far = normal(5, 4, seed=1), normal(5, 4, seed=2)

    def pull(start: torch.Tensor) -> torch.Tensor:
        z = start.clone().requires_grad_()
        with_far_still = contrast(z, near, far) - _push_only(z, far, near)
        return torch.autograd.grad(with_far_still, z)[0]

    def _push_only(z, far, near):  # the term with the pull's cosine as a constant
        constant = F.cosine_similarity(z, near).detach()
        away = F.cosine_similarity(z, far)
        return torch.log(1 + 0.2 * torch.exp(away - constant)).mean()

    assert pull(near).abs().max() < 1e-15
    assert pull(near + 0.1 * normal(5, 4, seed=3)).abs().max() > 1e-4


def batches(count: int = 3, seed: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    made = []
    for index in range(count):
        x = normal(6, FEATURES, seed=10 * seed + index)
        made.append((x, x[:, :3].argmax(dim=1)))
    return made


def personal_of(module, seed: int = 0, **settings):
    """Return the personal model after one local step, and the shared one before it."""
    start = state(module)
    _, kept = update_of(module, PerInvFL(**settings), batches(1, seed))
    return {k.removeprefix("perinvfl/"): v for k, v in kept.items() if k[:9] == "perinvfl/"}, start


def test_the_personal_model_goes_on_from_step_to_step():
    distances = []
    for steps in (1, 2, 4, 8):
        own, start = personal_of(net(module=Adams).double(), inner_steps=steps, personal_lr=1e-3)
        distances.append(float(sum((own[k] - start[k]).square().sum() for k in start)) ** 0.5)
    assert all(one > 1.5 * before for before, one in pairwise(distances))


def features(w, x):
    return F.relu(F.linear(x, w["body.0.weight"], w["body.0.bias"]))


def personal_by_hand(steps: int, pull_acts: bool) -> dict[str, torch.Tensor]:
    """Return the personal model after inner steps of SGD with momentum 0.9, in plain torch."""
    ((x, y),) = batches(1)
    start, helper = state(net().double()), state(net(seed=5).double())
    near, far = features(start, x), features(helper, x)
    p = {key: value.clone() for key, value in start.items()}
    velocity = {key: torch.zeros_like(value) for key, value in p.items()}
    for _ in range(steps):
        leaves = {key: value.clone().requires_grad_() for key, value in p.items()}
        z = features(leaves, x)
        loss = F.cross_entropy(F.linear(z, leaves["head.weight"], leaves["head.bias"]), y)
        loss = loss + 0.01 * sum(w.square().sum() for w in leaves.values())
        pull, away = F.cosine_similarity(z, near), F.cosine_similarity(z, far)
        pull = pull if pull_acts else pull.detach()
        loss = loss - 2 * torch.log(pull.exp() / (pull.exp() + 0.3 * away.exp())).mean()
        slopes = torch.autograd.grad(loss, list(leaves.values()))
        for key, slope in zip(leaves, slopes, strict=True):
            velocity[key] = 0.9 * velocity[key] + slope
            p[key] = p[key] - 0.05 * velocity[key]
    return p


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_inner_steps_are_those_of_the_formula_and_the_pull_acts_from_the_second_on(steps):
    algorithm = PerInvFL(strength=2.0, push=0.3, inner_steps=steps, personal_lr=0.05, l2=0.01)
    helper = {f"perinvfl:helper/{k}": v for k, v in state(net(seed=5).double()).items()}
    _, kept = update_of(net().double(), algorithm, batches(1), kept=helper)
    want, without = personal_by_hand(steps, True), personal_by_hand(steps, False)
    for key in want:
        assert torch.allclose(kept[f"perinvfl/{key}"], want[key], rtol=0, atol=1e-12), key
    gap = max(float((want[key] - without[key]).abs().max()) for key in want)
    assert gap < 1e-15 if steps == 1 else gap > 1e-5


@pytest.mark.parametrize("module", [Faulty, Adams])
def test_with_all_terms_off_it_is_fedavg_bit_for_bit(module):
    ours, plain = net(module=module), net(module=module)
    off = PerInvFL(strength=0, penalty=0, early_penalty=0, l2=0, inner_steps=0)
    loop = loop_of(fit(ours, off, rounds=3, datamodule=data(SIZES)))
    fit(plain, FedAvg(), rounds=3, datamodule=data(SIZES))
    assert same(state(ours), state(plain))
    assert loop.personal_model(0) == {}
    assert not loop.client_store.get(0)
    with_models = net(module=module)
    on = PerInvFL(strength=1, penalty=0, early_penalty=0, l2=0, inner_steps=2)
    fit(with_models, on, rounds=3, datamodule=data(SIZES))
    assert same(state(with_models), state(plain)), "what is private does not touch what is shared"


def test_the_penalty_changes_in_its_round_and_divides_the_loss():
    ((x, y),) = batches(1)

    def moved(version: int, **settings) -> dict[str, torch.Tensor]:
        module = net(lr=0.1, momentum=0.0, lr_milestones=()).double()
        before = state(module)
        algorithm = PerInvFL(l2=0.0, inner_steps=0, anneal_round=3, **settings)
        update, _ = update_of(module, algorithm, [(x, y)], version=version)
        return {key: (before[key] - value) / 0.1 for key, value in update.state.items()}

    def by_hand(a: float) -> dict[str, torch.Tensor]:
        w = {k: v.clone().requires_grad_() for k, v in state(net().double()).items()}
        scale = torch.ones((), dtype=torch.float64, requires_grad=True)
        hidden = F.relu(F.linear(x, w["body.0.weight"], w["body.0.bias"]))
        logits = F.linear(hidden, w["head.weight"], w["head.bias"])
        loss = F.cross_entropy(scale * logits, y)
        slope = torch.autograd.grad(loss, scale, create_graph=True)[0]
        total = (loss + a * slope**2) / max(a, 1.0)
        return dict(zip(w, torch.autograd.grad(total, list(w.values())), strict=True))

    for version, weight in ((0, 0.5), (2, 0.5), (3, 200.0), (9, 200.0)):
        got, want = moved(version, penalty=200.0, early_penalty=0.5), by_hand(weight)
        assert all(torch.allclose(got[k], want[k], rtol=0, atol=1e-12) for k in want)


def test_the_helper_is_plain_local_training_over_all_its_rounds():
    """Its optimizer's memory outlives a round: two rounds of one step are one of two."""
    algorithm, first, second = PerInvFL(), batches(1, seed=1), batches(1, seed=2)
    _, kept = update_of(net(module=Adams).double(), algorithm, first)
    _, kept = update_of(net(module=Adams, seed=4).double(), algorithm, second, kept=kept)
    plain = net(module=Adams).double()
    optimizer = torch.optim.Adam(plain.parameters(), lr=5e-3)
    for x, y in (*first, *second):
        optimizer.zero_grad()
        F.cross_entropy(plain(x), y).backward()
        optimizer.step()
    for key, want in state(plain).items():
        assert torch.allclose(kept[f"perinvfl:helper/{key}"], want, rtol=0, atol=1e-12), key


def test_statistics_of_batchnorm_are_each_models_own():
    module = net(norm=True).double()
    own = {f"perinvfl:helper/{k}": v for k, v in state(net(norm=True, seed=3).double()).items()}
    (x, y), *_ = batches(1)
    update, kept = update_of(module, PerInvFL(personal_lr=0.05), [(x, y)], kept=own)
    first = state(net(norm=True).double())

    def mean_of(weight, bias):
        return 0.1 * F.linear(x, weight, bias).mean(dim=0)

    shared = mean_of(first["body.0.weight"], first["body.0.bias"])
    helper = mean_of(own["perinvfl:helper/body.0.weight"], own["perinvfl:helper/body.0.bias"])
    assert torch.allclose(update.state["body.1.running_mean"], shared, atol=1e-12)
    assert torch.allclose(kept["perinvfl:helper/body.1.running_mean"], helper, atol=1e-12)
    assert int(kept["perinvfl/body.1.num_batches_tracked"]) == 2  # two inner steps
    assert int(update.state["body.1.num_batches_tracked"]) == 1


def test_messages_hold_the_shared_model_and_nothing_else():
    seen = []

    class Listening(PerInvFL):
        def weight(self, update):
            seen.append((set(update.state), dict(update.extras)))
            return super().weight(update)

    loop = loop_of(fit(net(module=Adams), Listening(), rounds=2))
    assert all(keys == set(state(net())) and not extras for keys, extras in seen)
    assert not loop.server.state_dict()
    kept = loop.client_store.get(0)
    kinds = {key.partition("/")[0] for key in kept}
    assert kinds == {"perinvfl", "perinvfl:helper", "perinvfl:optimizer"}
    assert {k.split("/")[1] for k in kept if "optimizer" in k} == {"step", "exp_avg", "exp_avg_sq"}


def test_an_unchosen_clients_state_is_untouched():
    built = fit(net(), PerInvFL(), rounds=1, cohort=2)
    idle = [c for c in range(4) if loop_of(built).client_store.get(c) is None]
    assert len(idle) == 2


def test_personalization_starts_from_the_personal_model(tmp_path):
    from fedlightning.personalization.models import client_model

    callback = PersonalizationCallback(epochs=0)
    module, some = net(), data()
    built = fit(
        module, PerInvFL(personal_lr=0.1), datamodule=some, folder=tmp_path, callbacks=[callback]
    )
    for client in range(4):
        own = {
            k.removeprefix("perinvfl/"): v
            for k, v in loop_of(built).client_store.get(client).items()
            if k.startswith("perinvfl/")
        }
        ((x, y),) = some.batches(client, "test")
        with torch.no_grad():
            logits = torch.func.functional_call(module.eval(), own, (x,))
        expected = float((logits.argmax(1) == y).float().mean())
        assert callback.results[client].after["acc"] == pytest.approx(expected)
        assert same(state(client_model(built.log_dir, client, net(seed=7))), own)


def test_it_composes_or_is_refused():
    module = net()
    fit(module, PerInvFL() + SCAFFOLD() + FedProx(0.1))
    assert all(torch.isfinite(value).all() for value in state(module).values())
    with pytest.raises(ConfigError, match="each says how to train on a batch"):
        _ = PerInvFL() + PerFedAvg()
    with pytest.raises(ConfigError, match="each gives clients models of their own"):
        _ = PerInvFL() + Ditto()
    with pytest.raises(ConfigError, match="accumulate_grad_batches=2"):
        fit(net(), PerInvFL(), accumulate_grad_batches=2)


class TwoLayerHead(FederatedModule):
    def __init__(self) -> None:
        super().__init__(head=["last", "scale"])
        self.body, self.last = nn.Linear(FEATURES, 5), nn.Linear(5, 3)
        self.scale = nn.Linear(3, 3)

    def forward(self, x):
        return self.scale(self.last(self.body(x)))


def test_a_head_of_several_layers_is_refused():
    with pytest.raises(ConfigError, match="needs a head that is one layer; the head of TwoLayer"):
        fit(TwoLayerHead(), PerInvFL())


@pytest.mark.parametrize(
    ("setting", "value"),
    [("strength", -1), ("push", 0), ("inner_steps", 1.5), ("personal_lr", 0), ("penalty", -1)],
)
def test_values_out_of_range_are_refused(setting, value):
    with pytest.raises(ConfigError, match=f"algorithm.{setting} must be"):
        PerInvFL(**{setting: value})
