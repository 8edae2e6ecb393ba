"""PersA-FL: its gradients by hand, clients' own models, the server's step."""

from __future__ import annotations

import pytest

from fedlightning import FedAvg, PerFedAvg, PersAFL, PersonalizationCallback, PFedMe
from fedlightning.algorithms import Algorithm, OneStep
from tests.algorithms.quadratics import Quadratic, scalars
from tests.toys import data, fit, loop_of, net, same, state

A, B, W = 2.0, 1.0, 3.0  # f = A (w - B)^2 / 2, at W
PERSONAL = {"part": "full", "nearest_mean": False, "epochs": 0}


def gradient(algorithm: Algorithm, lr: float = 0.05, eta: float = 0.0) -> float:
    """Return (w - w after one local step) / eta, of one client with that loss."""
    module = Quadratic(W, lr)
    fit(module, algorithm, rounds=1, datamodule=scalars([A], [B]))
    return (W - module.w.item()) / (eta or lr)


@pytest.mark.parametrize(
    ("algorithm", "expected"),
    [
        (PersAFL("A"), A * (W - B)),
        (PersAFL("B", alpha=0.1), 2.56),  # (1 - .1 * 2) * 2 * (3 - .1 * 2 * 2 - 1)
        (PersAFL("B", alpha=0.1, batches="same"), 2.56),
        (PersAFL("B", alpha=0.1, first_order=True), 3.2),
        (PerFedAvg(0.1, "exact"), 2.56),
    ],
    ids=repr,
)
def test_gradients_are_those_of_the_formulas(algorithm, expected):
    assert gradient(algorithm) == pytest.approx(expected, abs=1e-12)


def test_the_envelopes_gradient_is_that_of_the_formula():
    """The proximal point is (2 * 1 + 15 * 3) / 17 = 2.764706, the gradient 15 times the way."""
    solved = PersAFL("C", strength=15.0, tolerance=1e-13, inner_steps=200, lr=1.0)
    assert gradient(solved, eta=1.0) == pytest.approx(15 * (3 - 47 / 17), abs=1e-10)
    assert gradient(solved, eta=1.0) == pytest.approx(3.529412, abs=1e-6)


def test_the_envelopes_gradient_nears_the_plain_one_as_the_pull_grows():
    away = []
    for strength in (1e2, 1e4, 1e6):
        solved = PersAFL("C", strength=strength, tolerance=1e-9, inner_steps=200, lr=1.0)
        away.append(4 - gradient(solved, lr=1 / (strength + 3), eta=1.0))
    assert away == pytest.approx([8 / 102, 8 / 10002, 8 / 1000002], rel=1e-3)


def test_inner_steps_end_at_the_tolerance_or_at_their_bound():
    """The gradient 2 (t - 1) + 15 (t - 3) of a step of .05 shrinks to .15 of itself: from 4."""
    for tolerance, steps in ((4.0, 0), (0.6, 1), (0.59, 2), (0.0135, 3), (0.0134, 4), (0.0, 5)):
        found = gradient(PFedMe(15.0, inner_steps=5, lr=1.0, tolerance=tolerance), eta=1.0)
        there = 47 / 17 + (3 - 47 / 17) * 0.15**steps
        assert found == pytest.approx(15 * (3 - there), abs=1e-12), tolerance


@pytest.mark.parametrize(
    ("algorithm", "expected"),
    [
        (PersAFL("A"), lambda w, a, b: w),
        (PersAFL("A") + Algorithm(local=[OneStep(0.1)]), lambda w, a, b: w - 0.1 * a * (w - b)),
        (PersAFL("B", alpha=0.1), lambda w, a, b: w - 0.1 * a * (w - b)),
        (PersAFL("C", tolerance=1e-12), lambda w, a, b: (a * b + 15 * w) / (a + 15)),
    ],
    ids=["A", "A and a step", "B", "C"],
)
def test_own_models_follow_from_the_global_one(algorithm, expected):
    callback = PersonalizationCallback(**PERSONAL)
    module = Quadratic(W, 0.05)
    curvature, optimum = [2.0, 0.5, 3.0], [1.0, -2.0, 4.0]
    built = fit(
        module, algorithm, rounds=2, cohort=2, datamodule=scalars(curvature, optimum),
        callbacks=[callback],
    )  # fmt: skip
    w = module.w.item()
    assert len(loop_of(built).client_store) == 0
    for result, a, b in zip(callback.results, curvature, optimum, strict=True):
        own = expected(w, a, b)
        assert result.before["loss"] == pytest.approx(a * (own - b) ** 2 / 2, rel=1e-9)
        assert result.after["loss"] == result.before["loss"]


def test_an_update_counts_the_share_of_its_client():
    """Two of four clients with gradients 0.05 * (w - b): w moves by half of their mean."""
    optimum = [0.0, 4.0, 8.0, -2.0]
    for cohort in (1, 2, 4):
        module = Quadratic(W, 0.05)
        built = fit(module, PersAFL("A"), rounds=1, cohort=cohort,
                    datamodule=scalars([1.0] * 4, optimum))  # fmt: skip
        chosen = [job.client for job in loop_of(built).jobs]
        mean = sum(0.05 * (W - optimum[c]) for c in chosen) / cohort
        assert module.w.item() == pytest.approx(W - cohort / 4 * mean, abs=1e-12)


def test_rounds_of_all_clients_are_fedavg_with_uniform_weights():
    clients = data((8, 6, 7, 6))
    one, others = net(norm=True), []
    fit(one, FedAvg(weights="uniform"), datamodule=clients)
    for beta in (None, 1.0):
        others.append(net(norm=True))
        fit(others[-1], PersAFL("A", beta=beta), datamodule=clients)
    assert all(same(state(one), state(other)) for other in others)


def test_the_options_are_compositions():
    assert PersAFL("B", alpha=0.1).local == PerFedAvg(0.1, "exact", personal_step=True).local
    envelope = PFedMe(15.0, 20, tolerance=0.01, personal_solve=True)
    assert PersAFL("C").local == envelope.local
    one, other = net(), net()
    fit(one, PersAFL("C", beta=0.5), datamodule=data())
    fit(other, PFedMe(15.0, 20, beta=0.5, tolerance=0.01, personal_solve=True, weights="uniform"))
    assert same(state(one), state(other))
