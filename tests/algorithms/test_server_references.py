"""FedAvg and the server optimizers against their papers' formulas, written out."""

from __future__ import annotations

import pytest

from fedlightning import FedAdagrad, FedAdam, FedAvg, FedAvgM, FedYogi
from tests.algorithms.by_hand import (
    COHORTS,
    Sgd,
    Weights,
    assert_close,
    batches,
    copy,
    gradient,
    mean,
    sizes,
    start,
    trained,
)
from tests.toys import state


def local(w: Weights, client: int, round_: int) -> Weights:
    mine = copy(w)
    optimizer = Sgd(mine)
    for batch in batches(client, round_):
        optimizer.step(gradient(mine, batch))
    return mine


def average(w: Weights, round_: int, uniform: bool = False) -> Weights:
    cohort = COHORTS[round_]
    weights = [1.0] * 3 if uniform else sizes(cohort)
    return mean([local(w, client, round_) for client in cohort], weights, w)


@pytest.mark.parametrize("uniform", [False, True])
def test_fedavg_is_the_mean_weighted_by_examples_or_uniform(uniform):
    w = state(start())
    for round_ in range(3):
        w = average(w, round_, uniform)
    loop = trained(FedAvg(weights="uniform") if uniform else FedAvg())
    assert_close(state(loop.module), w)
    assert loop.personal_model(0) == {}


def test_fedavgm_is_momentum_on_the_mean_change():
    w, v = state(start()), None
    for round_ in range(3):
        m = average(w, round_)
        delta = {k: m[k] - w[k] for k in w}
        v = delta if v is None else {k: 0.9 * v[k] + delta[k] for k in w}
        w = {k: w[k] + 0.5 * v[k] for k in w}
    assert_close(state(trained(FedAvgM(lr=0.5, momentum=0.9)).module), w)


def adagrad(v, delta):
    return v + delta**2


def adam(v, delta):
    return 0.95 * v + 0.05 * delta**2


def yogi(v, delta):
    return v - 0.05 * delta**2 * (v - delta**2).sign()


@pytest.mark.parametrize(
    ("algorithm", "second_moment", "beta1"),
    [
        (FedAdagrad(lr=0.1, tau=0.01), adagrad, 0.0),
        (FedAdagrad(lr=0.1, tau=0.01, beta1=0.8), adagrad, 0.8),
        (FedAdam(lr=0.1, beta1=0.8, beta2=0.95, tau=0.01), adam, 0.8),
        (FedYogi(lr=0.1, beta1=0.8, beta2=0.95, tau=0.01), yogi, 0.8),
    ],
    ids=["Adagrad", "Adagrad with momentum", "Adam", "Yogi"],
)
def test_adaptive_servers_are_algorithm_2_of_reddi(algorithm, second_moment, beta1):
    w = state(start())
    m = {k: 0 * value for k, value in w.items()}
    v = {k: 0 * value + 0.01**2 for k, value in w.items()}
    for round_ in range(3):
        new = average(w, round_)
        for k in w:
            delta = new[k] - w[k]
            m[k] = beta1 * m[k] + (1 - beta1) * delta
            v[k] = second_moment(v[k], delta)
            w[k] = w[k] + 0.1 * m[k] / (v[k].sqrt() + 0.01)
    loop = trained(algorithm)
    assert_close(state(loop.module), w)
    remembered = loop.server.state_dict()
    assert_close({k: remembered[f"optimizer/m/{k}"] for k in w}, m)
    assert_close({k: remembered[f"optimizer/v/{k}"] for k in w}, v)


def test_statistics_are_the_mean_itself_whatever_the_server_does_to_weights():
    loop = trained(FedAvgM(lr=0.5), start(norm=True), federation={"local_epochs": 1})
    assert not [name for name in loop.server.state_dict() if "running" in name]
    one_round = start(norm=True)
    w = state(one_round)
    assert (state(loop.module)["body.1.running_var"] > 0).all()
    assert state(loop.module)["body.1.num_batches_tracked"] == w["body.1.num_batches_tracked"]
