"""Per-FedAvg against MAML's gradient, with autograd's own product with the Hessian."""

from __future__ import annotations

import pytest
import torch

from fedlightning import PerFedAvg
from tests.algorithms.by_hand import (
    COHORTS,
    Sgd,
    Weights,
    assert_close,
    batches,
    copy,
    gradient,
    loss,
    mean,
    sizes,
    start,
    trained,
)
from tests.toys import net, state

ALPHA = 0.2


def pieces(batch, number: int):
    """Return a batch in pieces, or as often itself where it is too short."""
    x, y = batch
    if len(y) < 2 * number:
        return [batch] * number
    return list(zip(x.tensor_split(number), y.tensor_split(number), strict=True))


def adapted(w: Weights, batch) -> Weights:
    g = gradient(w, batch)
    return {k: w[k] - ALPHA * g[k] for k in w}


def first_order(w: Weights, batch) -> Weights:
    inner, outer = pieces(batch, 2)
    return gradient(adapted(w, inner), outer)


def with_hessian(w: Weights, batch) -> Weights:
    inner, outer, third = pieces(batch, 3)
    v = gradient(adapted(w, inner), outer)
    keys = list(w)
    _, product = torch.autograd.functional.hvp(
        lambda *ws: loss(dict(zip(keys, ws, strict=True)), third),
        tuple(w.values()),
        tuple(v.values()),
    )
    return {k: v[k] - ALPHA * h for k, h in zip(keys, product, strict=True)}


@pytest.mark.parametrize(
    ("algorithm", "meta", "bound"),
    [
        (PerFedAvg(ALPHA), first_order, 1e-9),
        (PerFedAvg(ALPHA, "hessian_free", delta=1e-5), with_hessian, 1e-7),
    ],
    ids=["first order", "Hessian-free"],
)
@pytest.mark.parametrize("batch_size", [4, 8])
def test_a_step_is_along_the_meta_gradient(algorithm, meta, bound, batch_size, monkeypatch):
    monkeypatch.setattr("tests.algorithms.by_hand.BATCH", batch_size)
    w = state(start())
    for round_, cohort in enumerate(COHORTS):
        ends = []
        for client in cohort:
            mine = copy(w)
            optimizer = Sgd(mine)
            for batch in batches(client, round_):
                optimizer.step(meta(mine, batch))
            ends.append(mine)
        w = mean(ends, sizes(cohort), w)
    loop = trained(algorithm)
    assert_close(state(loop.module), w, bound)
    assert loop.personal_model(0) == {}


def test_the_difference_of_gradients_is_taken_under_the_same_dropout():
    """Else the difference of two masks, divided by a small delta, is all there is."""
    ends = []
    for delta in (1e-4, 1e-6):
        module = net(lr=0.1, momentum=0.0, lr_milestones=(), dropout=0.5).double()
        trained(PerFedAvg(ALPHA, "hessian_free", delta=delta), module)
        ends.append(state(module))
    assert_close(ends[0], ends[1], 1e-5)
