"""FedProx and SCAFFOLD, which change local gradients, against their papers' formulas."""

from __future__ import annotations

import pytest
import torch

from fedlightning import SCAFFOLD, FedBABU, FedProx
from tests.algorithms.by_hand import (
    BODY,
    COHORTS,
    LR,
    Sgd,
    Weights,
    assert_close,
    batches,
    copy,
    gradient,
    loss,
    mean,
    parameters,
    sizes,
    start,
    trained,
)
from tests.toys import Net, net, state


def proximal_loss(w: Weights, received: Weights, mu: float, batch) -> torch.Tensor:
    away = sum(((w[k] - received[k]) ** 2).sum() for k in parameters(w))
    return loss(w, batch) + mu / 2 * away


@pytest.mark.parametrize("mu", [0.0, 0.1, 2.0])
def test_fedprox_minimises_the_loss_with_the_proximal_term(mu):
    w = state(start())
    for round_, cohort in enumerate(COHORTS):
        locals_ = []
        for client in cohort:
            mine = copy(w)
            optimizer = Sgd(mine)
            for batch in batches(client, round_):
                optimizer.step(
                    gradient(mine, batch, of=lambda a, b, w=w: proximal_loss(a, w, mu, b))
                )
            locals_.append(mine)
        w = mean(locals_, sizes(cohort), w)
    assert_close(state(trained(FedProx(mu)).module), w)


def test_fedbabu_with_fedprox_pulls_the_body_and_leaves_the_head():
    w = state(start())
    for round_, cohort in enumerate(COHORTS):
        locals_ = []
        for client in cohort:
            mine = copy(w)
            optimizer = Sgd(mine)
            for batch in batches(client, round_):
                optimizer.step(
                    gradient(mine, batch, BODY, of=lambda a, b, w=w: proximal_loss(a, w, 0.5, b))
                )
            locals_.append(mine)
        w = w | mean(locals_, [1.0] * 3, BODY)
    assert_close(state(trained(FedBABU() + FedProx(0.5)).module), w)


@pytest.mark.parametrize("lr", [1.0, 0.5])
def test_scaffold_with_plain_sgd_is_the_papers_algorithm_with_option_two(lr):
    x = state(start())
    c = {k: 0 * value for k, value in x.items()}
    own = {client: copy(c) for client in range(4)}
    for round_, cohort in enumerate(COHORTS):
        moves, changes = [], []
        for client in cohort:
            y, ci, steps = copy(x), own[client], 0
            for batch in batches(client, round_):
                g = gradient(y, batch)
                y = {k: y[k] - LR * (g[k] - ci[k] + c[k]) for k in y}
                steps += 1
            new = {k: ci[k] - c[k] + (x[k] - y[k]) / (steps * LR) for k in y}
            moves.append({k: y[k] - x[k] for k in y})
            changes.append({k: new[k] - ci[k] for k in y})
            own[client] = new
        x = {k: x[k] + lr / 3 * sum(move[k] for move in moves) for k in x}
        c = {k: c[k] + sum(change[k] for change in changes) / 4 for k in c}
    loop = trained(SCAFFOLD(lr=lr), start(momentum=0.0))
    assert_close(state(loop.module), x)
    assert_close({k: loop.server.broadcast_extras[f"scaffold/{k}"] for k in c}, c)
    for client in range(4):
        kept = loop.personal.get(client)
        assert_close(kept, {f"scaffold/{k}": value for k, value in own[client].items()})
    assert loop.personal_model(0) == {}


def test_a_control_variate_holds_the_losses_gradient_and_nothing_of_the_proximal_term():
    module = start(momentum=0.0)
    w = state(module)
    loop = trained(SCAFFOLD() + FedProx(5.0), module)
    received = None
    x, c = w, {k: 0 * v for k, v in w.items()}
    own = {client: copy(c) for client in range(4)}
    for round_, cohort in enumerate(COHORTS):
        received, ends, changes = x, [], []
        for client in cohort:
            y, seen = copy(received), []
            for batch in batches(client, round_):
                seen.append(gradient(y, batch))
                y = {
                    k: y[k]
                    - LR * (seen[-1][k] - own[client][k] + c[k] + 5.0 * (y[k] - received[k]))
                    for k in y
                }
            new = mean(seen, [1.0] * len(seen), y)
            changes.append({k: new[k] - own[client][k] for k in y})
            own[client] = new
            ends.append(y)
        x = mean(ends, [1.0] * 3, x)
        c = {k: c[k] + sum(change[k] for change in changes) / 4 for k in c}
    assert_close(state(loop.module), x)
    assert_close(loop.personal.get(0), {f"scaffold/{k}": v for k, v in own[0].items()})


def test_a_client_without_a_step_keeps_its_control_variate():
    class Pauses(Net):
        def on_train_batch_start(self, batch, batch_idx):
            return -1 if self.trainer.current_epoch == 2 else None

    loop = trained(SCAFFOLD(), net(module=Pauses, lr_milestones=()).double())
    before = trained(SCAFFOLD(), start(momentum=0.9), rounds=2)
    assert_close(loop.personal.get(1), before.personal.get(1))
    assert_close(loop.server.state_dict(), before.server.state_dict())
