"""Per-FedAvg against MAML's gradient, with autograd's own product with the Hessian."""

from __future__ import annotations

import pytest
import torch

from fedlightning import Algorithm, PerFedAvg
from fedlightning.algorithms import ClientHook
from fedlightning.errors import ConfigError
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


def of_the_objective(w: Weights, batch) -> Weights:
    """Differentiate f(w - alpha grad f(w)) as a whole."""
    leaves = {k: v.clone().requires_grad_() for k, v in w.items()}
    slopes = torch.autograd.grad(loss(leaves, batch), list(leaves.values()), create_graph=True)
    there = {k: leaves[k] - ALPHA * g for k, g in zip(leaves, slopes, strict=True)}
    meta = torch.autograd.grad(loss(there, batch), list(leaves.values()))
    return dict(zip(leaves, meta, strict=True))


@pytest.mark.parametrize(
    ("algorithm", "meta", "bound"),
    [
        (PerFedAvg(ALPHA), first_order, 1e-9),
        (PerFedAvg(ALPHA, "hessian_free", delta=1e-5), with_hessian, 1e-7),
        (PerFedAvg(ALPHA, "exact"), with_hessian, 1e-9),
        (PerFedAvg(ALPHA, "exact", batches="same"), of_the_objective, 1e-9),
    ],
    ids=["first order", "Hessian-free", "exact", "exact, one batch"],
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


class Objective(ClientHook):
    """Steps along central differences of F(w) = f(w - alpha grad f(w)), one weight at a time."""

    def local_step(self, context, batch, batch_idx):
        def objective() -> float:
            at = context.weights()
            context.gradient(batch, batch_idx)
            context.add_to_weights(context.gradients(), -ALPHA)
            value = float(context.gradient(batch, batch_idx))
            context.set_weights(at)
            return value

        slopes, h = {}, 1e-5
        for key, parameter in context.parameters.items():
            slopes[key] = torch.zeros_like(parameter)
            for place in range(parameter.numel()):
                ends = []
                for sign in (1, -1):
                    before = parameter.detach().view(-1)[place].item()
                    parameter.data.view(-1)[place] = before + sign * h
                    ends.append(objective())
                    parameter.data.view(-1)[place] = before
                slopes[key].view(-1)[place] = (ends[0] - ends[1]) / (2 * h)
        context.set_gradients(slopes)
        context.update(batch_idx)


def test_with_one_batch_a_step_is_along_finite_differences_of_the_objective():
    ends = []
    for algorithm in (PerFedAvg(ALPHA, "exact", batches="same"), Algorithm(local=[Objective()])):
        module = net(lr=0.1, momentum=0.0, lr_milestones=()).double()
        trained(algorithm, module, rounds=1)
        ends.append(state(module))
    assert_close(ends[0], ends[1], 1e-6)


def test_one_batch_is_seen_under_one_dropout():
    """Then the objective is one function, and both ways to its second derivative agree."""
    ends = []
    for variant in ("hessian_free", "exact"):
        module = net(lr=0.1, momentum=0.0, lr_milestones=(), dropout=0.5).double()
        trained(PerFedAvg(ALPHA, variant, delta=1e-5, batches="same"), module)
        ends.append(state(module))
    assert_close(ends[0], ends[1], 1e-7)


class Attention(torch.nn.Module):
    """Fused attention among the examples, whose kernel cannot be differentiated twice."""

    def forward(self, x):
        one = x[None, None]
        return torch.nn.functional.scaled_dot_product_attention(one, one, one)[0, 0]


def test_a_network_without_second_derivatives_is_named():
    module = net(lr_milestones=()).double()
    module.body.append(Attention())
    with pytest.raises(
        ConfigError, match=r"Net cannot be differentiated twice \(derivative for .*"
    ):
        trained(PerFedAvg(ALPHA, "exact"), module)


def test_the_difference_of_gradients_is_taken_under_the_same_dropout():
    """Else the difference of two masks, divided by a small delta, is all there is."""
    ends = []
    for delta in (1e-4, 1e-6):
        module = net(lr=0.1, momentum=0.0, lr_milestones=(), dropout=0.5).double()
        trained(PerFedAvg(ALPHA, "hessian_free", delta=delta), module)
        ends.append(state(module))
    assert_close(ends[0], ends[1], 1e-5)
