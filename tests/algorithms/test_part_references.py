"""Algorithms in which clients keep a part, against loops that are written out."""

from __future__ import annotations

import pytest

from fedlightning import SCAFFOLD, FedBABU, FedBN, FedPer, FedProx, FedRep, LGFedAvg, LocalOnly
from tests.algorithms.by_hand import (
    BODY,
    COHORTS,
    HEAD,
    LR,
    Sgd,
    Weights,
    assert_close,
    batches,
    copy,
    global_and_own,
    gradient,
    mean,
    sizes,
    start,
    trained,
)
from tests.toys import state

NORM = [f"body.1.{name}" for name in ("weight", "bias", "running_mean", "running_var")]
COUNT = "body.1.num_batches_tracked"


def by_hand(w: Weights, turn, shared, kept, weights=sizes) -> tuple[Weights, dict[int, Weights]]:
    """Return the global model after three rounds, and the parts that clients keep."""
    own: dict[int, Weights] = {}
    for round_, cohort in enumerate(COHORTS):
        ends = []
        for client in cohort:
            mine = copy({**w, **own.get(client, {})})
            turn(mine, client, round_)
            own[client] = {k: mine[k] for k in kept}
            ends.append(mine)
        w = {**w, **mean(ends, weights(cohort), shared)}
    return w, own


def train(keys=None):
    def turn(mine: Weights, client: int, round_: int) -> None:
        optimizer = Sgd(mine)
        for batch in batches(client, round_):
            optimizer.step(gradient(mine, batch, keys))

    return turn


def head_then_body(mine: Weights, client: int, round_: int) -> None:
    optimizer = Sgd(mine)
    for batch in batches(client, round_, epochs=3):  # the head's
        optimizer.step(gradient(mine, batch, HEAD))
    for batch in batches(client, round_, epochs=(3, 4)):
        optimizer.step(gradient(mine, batch, BODY))


@pytest.mark.parametrize(
    ("algorithm", "turn", "shared", "kept"),
    [
        (FedPer(), train(), BODY, HEAD),
        (LGFedAvg(), train(), HEAD, BODY),
        (LocalOnly(), train(), [], BODY + HEAD),
        (FedRep(head_epochs=3), head_then_body, BODY, HEAD),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_what_is_kept_and_what_is_averaged(algorithm, turn, shared, kept):
    w, own = by_hand(state(start()), turn, shared, kept)
    loop = trained(algorithm)
    assert_close(state(loop.module), w)
    for client in range(4):
        assert_close(loop.personal_model(client), own[client])
        assert_close(loop.personal.get(client), own[client])


def test_fedbabu_averages_bodies_uniformly_and_keeps_nothing():
    w, _ = by_hand(state(start()), train(BODY), BODY, [], weights=lambda cohort: [1.0] * 3)
    loop = trained(FedBABU())
    assert_close(state(loop.module), w)
    assert len(loop.personal) == 0


def test_fedbn_keeps_scale_shift_and_statistics_and_averages_the_rest():
    first = state(start(norm=True))
    w, own = by_hand(first, train(), BODY + HEAD, [*NORM, COUNT])
    loop = trained(FedBN(), start(norm=True))
    assert_close(state(loop.module), w)
    assert_close({k: w[k] for k in NORM}, {k: first[k] for k in NORM})
    for client in range(4):
        assert_close(loop.personal_model(client), own[client])
    turns = sum(0 in cohort for cohort in COHORTS)
    assert loop.personal_model(0)[COUNT] == turns * 2 * 2  # two epochs of two batches


def test_fedbabu_with_fedbn_keeps_the_bodys_norms_alone():
    own_norms = [*NORM, COUNT]
    w, own = by_hand(
        state(start(norm=True)), train([*BODY, *NORM[:2]]), BODY, own_norms, lambda _: [1.0] * 3
    )
    loop = trained(FedBABU() + FedBN(), start(norm=True))
    assert_close(state(loop.module), w)
    assert_close(global_and_own(loop, 3), {**w, **own[3]})


def test_the_proximal_term_leaves_alone_what_stays_with_the_client():
    received = {}

    def turn(mine: Weights, client: int, round_: int) -> None:
        optimizer = Sgd(mine)
        received.update(copy(mine))
        for batch in batches(client, round_):
            g = gradient(mine, batch)
            g |= {k: g[k] + 2.0 * (mine[k] - received[k]) for k in BODY}
            optimizer.step(g)

    w, own = by_hand(state(start()), turn, BODY, HEAD)
    loop = trained(FedPer() + FedProx(mu=2.0))
    assert_close(state(loop.module), w)
    assert_close(loop.personal_model(3), own[3])


def test_scaffold_counts_the_steps_of_a_part_alone():
    first = state(start())
    c = {k: 0 * first[k] for k in BODY}
    controls = {client: copy(c) for client in range(4)}
    changes = []

    def turn(mine: Weights, client: int, round_: int) -> None:
        if len(changes) == 3:  # of the last round
            c.update({k: c[k] + sum(change[k] for change in changes) / 4 for k in BODY})
            changes.clear()
        for batch in batches(client, round_, epochs=2):
            g = gradient(mine, batch, HEAD)
            mine.update({k: mine[k] - LR * g[k] for k in HEAD})
        began, steps, ci = copy(mine), 0, controls[client]
        for batch in batches(client, round_, epochs=(2, 3)):
            g, steps = gradient(mine, batch, BODY), steps + 1
            mine.update({k: mine[k] - LR * (g[k] - ci[k] + c[k]) for k in BODY})
        new = {k: ci[k] - c[k] + (began[k] - mine[k]) / (steps * LR) for k in BODY}
        changes.append({k: new[k] - ci[k] for k in BODY})
        controls[client] = new

    w, own = by_hand(first, turn, BODY, HEAD, lambda _: [1.0] * 3)
    loop = trained(SCAFFOLD() + FedRep(head_epochs=2), start(momentum=0.0))
    assert_close(state(loop.module), w)
    assert_close(loop.personal_model(0), own[0])
    kept = loop.personal.get(1)
    assert_close({k: kept[f"scaffold/{k}"] for k in BODY}, controls[1])


def test_a_client_that_never_trained_has_the_global_model():
    loop = trained(FedPer())
    loop.personal.load_state_dict({"clients": [], "tensors": {}})
    assert loop.personal_model(2) == {}
