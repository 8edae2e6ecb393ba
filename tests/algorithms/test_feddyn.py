"""FedDyn against its paper's formulas."""

from __future__ import annotations

import pytest
import torch

from fedlightning import FedBABU, FedDyn
from tests.algorithms.by_hand import (
    BODY,
    COHORTS,
    Sgd,
    assert_close,
    batches,
    copy,
    gradient,
    loss,
    mean,
    start,
    trained,
)
from tests.toys import state


def by_hand(alpha, keys):
    """Return the global model, h and the clients' gradients after three rounds."""
    theta = state(start())
    h = {k: torch.zeros_like(theta[k]) for k in keys}
    own = {client: copy(h) for client in range(4)}
    for round_, cohort in enumerate(COHORTS):
        ends = []
        for client in cohort:
            mine, g = copy(theta), own[client]
            optimizer = Sgd(mine)

            def objective(w, batch, g=g, theta=theta):
                away = sum(((w[k] - theta[k]) ** 2).sum() for k in keys)
                linear = sum((g[k] * w[k]).sum() for k in keys)
                return loss(w, batch) - linear + alpha / 2 * away

            for batch in batches(client, round_):
                optimizer.step(gradient(mine, batch, keys, of=objective))
            own[client] = {k: g[k] - alpha * (mine[k] - theta[k]) for k in keys}
            ends.append(mine)
        total = {k: sum(end[k] - theta[k] for end in ends) for k in keys}
        h = {k: h[k] - alpha / 4 * total[k] for k in keys}
        middle = mean(ends, [1.0] * 3, keys)
        theta = theta | {k: middle[k] - h[k] / alpha for k in keys}
    return theta, h, own


@pytest.mark.parametrize("alpha", [0.05, 0.7])
@pytest.mark.parametrize("part", ["full", "body"])
def test_feddyn_is_the_papers_algorithm(alpha, part):
    keys = list(state(start())) if part == "full" else BODY
    theta, h, own = by_hand(alpha, keys)
    algorithm = FedDyn(alpha)
    loop = trained(algorithm if part == "full" else FedBABU() + algorithm)
    assert_close(state(loop.module), theta)
    kept = loop.server.state_dict()
    assert_close({k: kept[f"optimizer/h/{k}"] for k in keys}, h)
    for client in range(4):
        assert_close(loop.client_store.get(client), {f"feddyn/{k}": own[client][k] for k in keys})
    assert loop.personal_model(0) == {}
    assert all(value.abs().max() > 1e-3 for value in own[0].values())
