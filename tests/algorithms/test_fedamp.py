"""FedAMP against its paper's formulas."""

from __future__ import annotations

import math

import pytest
import torch

from fedlightning import FedAMP, LocalOnly
from fedlightning.algorithms import AttentivePull
from tests.algorithms.by_hand import (
    COHORTS,
    Sgd,
    assert_close,
    batches,
    copy,
    gradient,
    loss,
    start,
    trained,
)
from tests.toys import same, state


def mixture(sent, client, alpha, sigma):
    """Return u of a client, given all models that were sent; its own one is among them."""
    own, weights = sent[client], {}
    for other, w in sent.items():
        if other != client:
            squared = sum(float(((own[k] - w[k]) ** 2).sum()) for k in own)
            weights[other] = alpha * math.exp(-squared / sigma) / sigma
    weights[client] = 1 - sum(weights.values())
    return {k: sum(a * sent[other][k] for other, a in weights.items()) for k in own}


@pytest.mark.parametrize(("strength", "alpha", "sigma"), [(0.2, 0.5, 2.0), (1.0, 3.0, 1.0)])
def test_fedamp_is_the_papers_algorithm(strength, alpha, sigma):
    first, own, sent = state(start()), {}, {}
    for round_, cohort in enumerate(COHORTS):
        ends = {}
        for client in cohort:
            w = copy(own.get(client, first))
            u = mixture(sent, client, alpha, sigma) if client in sent else w
            optimizer = Sgd(w)

            def objective(a, batch, u=u, known=client in sent):
                away = sum(((a[k] - u[k]) ** 2).sum() for k in a)
                return loss(a, batch) + known * strength / (2 * alpha) * away

            for batch in batches(client, round_):
                optimizer.step(gradient(w, batch, of=objective))
            own[client] = w
            ends[client] = copy(w)
        sent |= ends
    loop = trained(FedAMP(strength, alpha, sigma))
    for client in range(4):
        assert_close(loop.personal_model(client), own[client])
    assert_close(
        loop.server.state_dict(),
        {f"fedamp/{client}/{k}": v for client, w in sent.items() for k, v in w.items()},
    )
    assert same(state(loop.module), state(start()))


def test_what_a_client_receives_is_a_mean_of_the_models_by_nearness():
    models = {0: 0.0, 7: 1.0, 12: 3.0}
    state = {f"fedamp/{client}/w": torch.tensor([w]) for client, w in models.items()}
    hook = AttentivePull(strength=1.0, alpha=0.5, sigma=2.0)
    near, far = 0.25 * math.exp(-0.5), 0.25 * math.exp(-4.5)
    assert float(hook.broadcast(state, 0)["fedamp/w"]) == pytest.approx(near + 3 * far)
    assert hook.broadcast(state, 3) == {}  # a client that is new


def test_without_strength_it_is_local_training():
    one, other = trained(FedAMP(strength=0.0)), trained(LocalOnly())
    for client in range(4):
        assert same(one.personal_model(client), other.personal_model(client))
