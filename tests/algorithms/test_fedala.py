"""FedALA against its paper's formulas."""

from __future__ import annotations

import pytest
import torch

from fedlightning import FedALA, FedAvg
from fedlightning.core.state import under
from tests.algorithms.by_hand import (
    BODY,
    COHORTS,
    HEAD,
    Sgd,
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


@pytest.mark.parametrize(("eta", "part"), [(1.0, "head"), (3.0, "full"), (3.0, "body")])
def test_fedala_is_the_papers_algorithm(eta, part):
    w, own, mixing = state(start()), {}, {}
    keys = {"head": HEAD, "body": BODY, "full": [*BODY, *HEAD]}[part]
    for round_, cohort in enumerate(COHORTS):
        ends = []
        for client in cohort:
            mine = copy(w)
            if client in own:
                last, first = own[client], client not in mixing
                a = mixing.setdefault(client, {k: torch.ones_like(w[k]) for k in keys})
                for batch in batches(client, round_, "apart", 3 if first else 1):
                    mixed = {**w, **{k: last[k] + a[k] * (w[k] - last[k]) for k in keys}}
                    g = gradient(mixed, batch, keys)
                    for k in keys:
                        a[k] = (a[k] - eta * g[k] * (w[k] - last[k])).clip(0, 1)
                mine |= {k: last[k] + a[k] * (w[k] - last[k]) for k in keys}
            optimizer = Sgd(mine)
            for batch in batches(client, round_):
                optimizer.step(gradient(mine, batch))
            own[client] = copy(mine)
            ends.append(mine)
        w = mean(ends, sizes(cohort), w)
    loop = trained(FedALA(eta, part, first_epochs=3))
    assert_close(state(loop.module), w)
    for client in range(4):
        assert_close(loop.personal_model(client), own[client])
        found = under(loop.client_store.get(client), "fedala:weights")
        assert_close(found, mixing.get(client, {}))
    inside = torch.cat([a.flatten() for a in mixing[0].values()])
    assert ((inside > 0) & (inside < 1)).any()


def test_weights_that_stay_one_are_fedavg():
    one, other = start(), start()
    trained(FedALA(eta=0.0), one)
    trained(FedAvg(), other)
    assert_close(state(one), state(other), 1e-12)
