"""MOON against its paper's formula."""

from __future__ import annotations

import pytest
import torch

from fedlightning import MOON, FedAvg
from tests.algorithms.by_hand import (
    COHORTS,
    Sgd,
    assert_close,
    batches,
    copy,
    features,
    gradient,
    loss,
    mean,
    sizes,
    start,
    trained,
)
from tests.toys import fit, net, same, state


def cosine(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return the cosines of the angles between rows; a row of zeros has 0."""
    lengths = (a**2).sum(1).sqrt() * (b**2).sum(1).sqrt()
    return (a * b).sum(1) / lengths.clamp(min=1e-16)


@pytest.mark.parametrize(("mu", "tau"), [(1.0, 0.5), (5.0, 0.2)])
def test_moon_is_the_papers_loss(mu, tau):
    w, last = state(start()), {}
    for round_, cohort in enumerate(COHORTS):
        ends = []
        for client in cohort:
            mine, previous = copy(w), last.get(client, w)
            optimizer = Sgd(mine)

            def objective(a, batch, previous=previous, w=w):
                z, x = features(a, batch[0]), batch[0]
                near = torch.exp(cosine(z, features(w, x)) / tau)
                far = torch.exp(cosine(z, features(previous, x)) / tau)
                return loss(a, batch) - mu * torch.log(near / (near + far)).mean()

            for batch in batches(client, round_):
                optimizer.step(gradient(mine, batch, of=objective))
            last[client] = copy(mine)
            ends.append(mine)
        w = mean(ends, sizes(cohort), w)
    loop = trained(MOON(mu, tau))
    assert_close(state(loop.module), w)
    for client in range(4):
        kept = loop.client_store.get(client)
        assert_close(kept, {f"moon/{k}": value for k, value in last[client].items()})


def test_without_weight_the_term_changes_no_bit():
    one, other = net(dropout=0.3), net(dropout=0.3)
    fit(one, MOON(mu=0.0))
    fit(other, FedAvg())
    assert same(state(one), state(other))
