"""FedNova against its paper's formulas, with numbers of steps that differ by client."""

from __future__ import annotations

import pytest
import torch

from fedlightning import FedAvg, FedNova, FedRep
from fedlightning.algorithms.aggregation import CoordinateMedian
from fedlightning.errors import ConfigError
from tests.algorithms.by_hand import (
    BODY,
    COHORTS,
    LR,
    MOMENTUM,
    SIZES,
    Sgd,
    assert_close,
    batches,
    copy,
    gradient,
    start,
    trained,
)
from tests.toys import data, fit, net, state

EXAMPLES = (8, 6, 3, 1)  # two, two, one and one batch of four


def norm_of(steps: int, momentum: float) -> float:
    """Return the sum of (1 - rho^j) / (1 - rho) over j = 1 ... steps."""
    return sum((1 - momentum**j) / (1 - momentum) for j in range(1, steps + 1))


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_fednova_is_the_papers_normalized_average(monkeypatch, momentum):
    monkeypatch.setattr("tests.algorithms.by_hand.SIZES", EXAMPLES)
    x = state(start())
    for round_, cohort in enumerate(COHORTS):
        changes, norms = [], []
        for client in cohort:
            mine = copy(x)
            optimizer = Sgd(mine, momentum=momentum)
            seen = batches(client, round_)
            for batch in seen:
                optimizer.step(gradient(mine, batch))
            norms.append(norm_of(len(seen), momentum))
            changes.append({k: (mine[k] - x[k]) / norms[-1] for k in x})
        assert len(set(norms)) > 1
        total = sum(EXAMPLES[client] for client in cohort)
        p = [EXAMPLES[client] / total for client in cohort]
        tau = sum(a * n for a, n in zip(p, norms, strict=True))
        x = {k: x[k] + tau * sum(a * d[k] for a, d in zip(p, changes, strict=True)) for k in x}
    assert_close(state(trained(FedNova(), start(momentum=momentum)).module), x)


def test_the_closed_form_of_the_docstring_is_the_sum():
    rho, tau = 0.9, 7
    closed = (tau - rho * (1 - rho**tau) / (1 - rho)) / (1 - rho)
    assert closed == pytest.approx(norm_of(tau, rho), rel=1e-12)


def test_nesterovs_momentum_counts_as_it_moves():
    class Nesterov(type(net())):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=LR, momentum=0.5, nesterov=True)

    seen = []

    class Spy(FedNova):
        def weight(self, update):
            seen.append(float(update.extras["fednova/head.bias"]))
            return super().weight(update)

    fit(net(module=Nesterov), Spy(), rounds=1, datamodule=data((8, 4)))
    # by hand: the first gradient moves the weights by 1 + 0.5, then by 0.5 ** 2; the second by 1.5
    assert sorted(set(seen)) == [1.5, 1.5 + 0.25 + 1.5]


def test_equal_numbers_of_steps_are_fedavg():
    one, other = start(), start()
    trained(FedNova(), one)
    trained(FedAvg(), other)
    assert {-(-size // 4) for size in SIZES} == {2}
    assert_close(state(one), state(other), 1e-12)


def test_a_part_that_is_trained_for_some_epochs_counts_these_alone(monkeypatch):
    monkeypatch.setattr("tests.algorithms.by_hand.SIZES", EXAMPLES)
    w, heads = state(start()), {}
    for round_, cohort in enumerate(COHORTS):
        moves, norms = [], []
        for client in cohort:
            mine = copy({**w, **heads.get(client, {})})
            head, body = Sgd(mine), Sgd(mine)
            for batch in batches(client, round_, epochs=range(1)):
                head.step(gradient(mine, batch, ["head.weight", "head.bias"]))
            seen = batches(client, round_, epochs=range(1, 3))
            for batch in seen:
                body.step(gradient(mine, batch, BODY))
            heads[client] = {k: mine[k] for k in ("head.weight", "head.bias")}
            norms.append(norm_of(len(seen), MOMENTUM))
            moves.append({k: (mine[k] - w[k]) / norms[-1] for k in BODY})
        tau = sum(norms) / 3
        w = w | {k: w[k] + tau * sum(move[k] for move in moves) / 3 for k in BODY}
    module = start()
    trained(FedRep(head_epochs=1, weights="uniform") + FedNova(), module)
    assert_close(state(module), w)


def test_buffers_have_the_plain_mean(monkeypatch):
    monkeypatch.setattr("tests.algorithms.by_hand.SIZES", (8, 6, 3, 2))
    by_steps, plain = start(norm=True), start(norm=True)
    trained(FedNova(), by_steps, rounds=1)
    trained(FedAvg(), plain, rounds=1)
    assert_close(dict(by_steps.named_buffers()), dict(plain.named_buffers()), 1e-12)
    assert not torch.allclose(by_steps.head.weight, plain.head.weight)


def test_a_robust_rule_is_refused_because_it_cannot_bound_the_steps():
    with pytest.raises(ConfigError, match="CoordinateMedian cannot protect 'fednova' of LocalProg"):
        fit(net(), FedNova(), federation={"aggregator": CoordinateMedian()})
