"""Algorithms that give clients models of their own, against their papers' formulas."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from fedlightning import APFL, Ditto, FedBABU, FedRoD, PFedMe
from tests.algorithms.by_hand import (
    BODY,
    COHORTS,
    LR,
    Sgd,
    Weights,
    assert_close,
    batches,
    clients,
    copy,
    features,
    global_and_own,
    gradient,
    logits,
    mean,
    sizes,
    start,
    trained,
)
from tests.toys import state


@pytest.mark.parametrize(("strength", "epochs"), [(0.0, None), (0.75, None), (0.75, 3)])
def test_ditto_trains_its_own_model_towards_the_rounds_global_one(strength, epochs):
    w, own = state(start()), {}
    for round_, cohort in enumerate(COHORTS):
        ends = []
        for client in cohort:
            v = own.setdefault(client, copy(w))
            optimizer = Sgd(v)
            for batch in batches(client, round_, "apart", epochs or 2):
                g = gradient(v, batch)
                optimizer.step({k: g[k] + strength * (v[k] - w[k]) for k in g})
            mine = copy(w)
            optimizer = Sgd(mine)
            for batch in batches(client, round_):
                optimizer.step(gradient(mine, batch))
            ends.append(mine)
        w = mean(ends, sizes(cohort), w)
    loop = trained(Ditto(strength, epochs))
    assert_close(state(loop.module), w)
    for client in range(4):
        assert_close(loop.personal_model(client), own[client])


@pytest.mark.parametrize(("beta", "lr"), [(1.0, None), (0.5, 0.02)])
def test_pfedme_is_algorithm_1_of_the_paper(beta, lr):
    lam, eta = 2.0, LR if lr is None else lr
    w, own = state(start()), {}
    for round_, cohort in enumerate(COHORTS):
        ends = []
        for client in cohort:
            mine, theta = copy(w), copy(w)
            optimizer = Sgd(theta)
            for batch in batches(client, round_):
                for _ in range(3):
                    g = gradient(theta, batch)
                    optimizer.step({k: g[k] + lam * (theta[k] - mine[k]) for k in g})
                mine = {k: mine[k] - eta * lam * (mine[k] - theta[k]) for k in mine}
            own[client] = theta
            ends.append(mine)
        m = mean(ends, sizes(cohort), w)
        w = {k: (1 - beta) * w[k] + beta * m[k] for k in w}
    loop = trained(PFedMe(strength=lam, inner_steps=3, lr=lr, beta=beta))
    assert_close(state(loop.module), w)
    for client in range(4):
        assert_close(loop.personal_model(client), own[client])


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("part", ["full", "body"])
def test_apfl_mixes_two_models_and_learns_the_share(adaptive, part):
    first = state(start())
    keys = list(first) if part == "full" else BODY
    w, own, alphas = first, {}, dict.fromkeys(range(4), 0.3)
    for round_, cohort in enumerate(COHORTS):
        ends = []
        for client in cohort:
            mine = copy(w)
            v = own.setdefault(client, {k: w[k].clone() for k in keys})
            one, other = Sgd(mine), Sgd(v)
            for index, batch in enumerate(batches(client, round_)):
                a = alphas[client]
                mixed = {**mine, **{k: a * v[k] + (1 - a) * mine[k] for k in keys}}
                slope, g = gradient(mixed, batch, keys), gradient(mine, batch, keys)
                if adaptive and index == 0:
                    change = sum((slope[k] * (v[k] - mine[k])).sum() for k in keys)
                    alphas[client] = min(max(a - LR * float(change), 0.0), 1.0)
                other.step({k: a * slope[k] for k in keys})
                one.step(g)
            ends.append(mine)
        weights = sizes(cohort) if part == "full" else [1.0] * 3
        w = {**w, **mean(ends, weights, keys)}
    algorithm = APFL(alpha=0.3, adaptive=adaptive)
    loop = trained(algorithm if part == "full" else FedBABU() + algorithm)
    assert_close(state(loop.module), w)
    for client in range(4):
        kept, a = dict(loop.personal.get(client)), alphas[client]
        assert float(kept.pop("apfl:alpha")) == pytest.approx(a, abs=1e-9)
        assert_close(kept, {f"apfl/{k}": value for k, value in own[client].items()})
        mixed = {k: a * own[client][k] + (1 - a) * w[k] for k in keys}
        assert_close(global_and_own(loop, client), {**w, **mixed})
    trained_twice = [c for c in range(4) if sum(c in cohort for cohort in COHORTS) > 1]
    assert all((alphas[c] != 0.3) == adaptive for c in trained_twice)


def test_fedrod_trains_a_balanced_shared_head_and_an_own_one_on_its_features():
    w, own = state(start()), {}
    held = clients()
    for round_, cohort in enumerate(COHORTS):
        ends = []
        for client in cohort:
            counts = torch.bincount(torch.as_tensor(held.labels(client)), minlength=3).double()
            prior = (counts / counts.sum()).log()
            mine = copy(w)
            zero = {k: 0 * w[k] for k in ("head.weight", "head.bias")}
            h = own.setdefault(client, zero)
            shared, personal = Sgd(mine), Sgd(h)

            def balanced(a: Weights, batch, prior=prior):
                return F.cross_entropy(logits(a, batch[0]) + prior, batch[1])

            def plain(b: Weights, batch, mine=mine):
                z, g = features(mine, batch[0]), logits(mine, batch[0])
                both = g + F.linear(z, b["head.weight"], b["head.bias"])
                return F.cross_entropy(both, batch[1])

            for batch in batches(client, round_):
                g, slope = gradient(mine, batch, of=balanced), gradient(h, batch, of=plain)
                shared.step(g)
                personal.step(slope)
            ends.append(mine)
        w = mean(ends, sizes(cohort), w)
    loop = trained(FedRoD())
    assert_close(state(loop.module), w)
    for client in range(4):
        assert_close(loop.personal_model(client), {k: w[k] + h for k, h in own[client].items()})
