"""How algorithms go with the ways to take a step: the short one, Lightning's, several at once."""

from __future__ import annotations

import pytest
import pytorch_lightning as pl
from pytorch_lightning.callbacks import GradientAccumulationScheduler

from fedlightning import (
    APFL,
    SCAFFOLD,
    Ditto,
    FedAdam,
    FedAvgM,
    FedBABU,
    FedBN,
    FedProx,
    FedRep,
    FedRoD,
    PerFedAvg,
    PFedMe,
)
from fedlightning.errors import ConfigError
from tests.algorithms.by_hand import (
    COHORTS,
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
from tests.toys import Net, data, fit, loop_of, net, same, state


class Hooked(Net):
    """Wants to take part in the step, and so gets Lightning's own."""

    def on_before_optimizer_step(self, optimizer):
        pass


class Manual(Net):
    """Takes the steps itself."""

    def __init__(self, **kwargs) -> None:
        super().__init__(**kwargs)
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        optimizer.step()


STOCK = {"hook": ({"module": Hooked}, {}), "profiler": ({}, {"profiler": "simple"})}


@pytest.mark.parametrize("stock", STOCK)
@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("algorithm", [FedProx(0.5), SCAFFOLD(), Ditto()], ids=lambda a: a.name)
def test_lightnings_own_step_gives_the_bits_of_the_short_one(algorithm, stock, clip):
    module, settings = STOCK[stock]
    short, long = net(dropout=0.3), net(dropout=0.3, **module)
    one = loop_of(fit(short, algorithm, gradient_clip_val=clip))
    other = loop_of(fit(long, algorithm, gradient_clip_val=clip, **settings))
    assert same(state(short), state(long))
    assert same(one.server.state_dict(), other.server.state_dict())
    for client in one.personal:
        assert same(one.personal.get(client), other.personal.get(client))


@pytest.mark.parametrize("algorithm", [FedProx(0.5), SCAFFOLD(), Ditto()], ids=lambda a: a.name)
def test_manual_optimization_is_adjusted_too(algorithm):
    automatic, manual = net(lr_milestones=()), net(module=Manual, lr_milestones=())
    fit(automatic, algorithm)
    fit(manual, algorithm)
    assert_close(state(automatic), state(manual), 1e-6)


def clipped(g, most: float):
    """Return a gradient whose whole norm is at most so much, as torch clips it."""
    norm = sum((value**2).sum() for value in g.values()).sqrt()
    factor = min(1.0, most / (float(norm) + 1e-6))
    return {k: factor * value for k, value in g.items()}


@pytest.mark.parametrize("module", [Net, Hooked])
def test_it_is_the_adjusted_gradient_that_is_clipped(module):
    w = state(start())
    for round_, cohort in enumerate(COHORTS):
        ends = []
        for client in cohort:
            mine = copy(w)
            optimizer = Sgd(mine)
            for batch in batches(client, round_):
                g = gradient(mine, batch)
                optimizer.step(clipped({k: g[k] + 5.0 * (mine[k] - w[k]) for k in g}, 0.3))
            ends.append(mine)
        w = mean(ends, sizes(cohort), w)
    loop = trained(FedProx(5.0), start(module=module), gradient_clip_val=0.3)
    assert_close(state(loop.module), w)


def test_the_own_model_of_apfl_is_clipped_too():
    w = state(start())
    client = COHORTS[0][0]
    mine, v = copy(w), copy(w)
    one, other = Sgd(mine), Sgd(v)
    for batch in batches(client, 0):
        mixed = {k: 0.5 * v[k] + 0.5 * mine[k] for k in w}
        slope, g = gradient(mixed, batch), gradient(mine, batch)
        other.step(clipped({k: 0.5 * slope[k] for k in w}, 0.1))
        one.step(clipped(g, 0.1))
    loop = trained(APFL(adaptive=False), gradient_clip_val=0.1, rounds=1)
    kept = dict(loop.personal.get(client))
    kept.pop("apfl:alpha")
    assert_close(kept, {f"apfl/{k}": value for k, value in v.items()})


@pytest.mark.parametrize("module", [Net, Hooked])
def test_with_accumulation_the_proximal_term_is_added_once_a_step(module):
    w = state(start())
    for round_, cohort in enumerate(COHORTS):
        ends = []
        for client in cohort:
            mine = copy(w)
            optimizer = Sgd(mine)
            pairs = batches(client, round_)  # two batches an epoch
            for first, second in zip(pairs[::2], pairs[1::2], strict=True):
                a, b = gradient(mine, first), gradient(mine, second)
                optimizer.step({k: (a[k] + b[k]) / 2 + 0.5 * (mine[k] - w[k]) for k in w})
            ends.append(mine)
        w = mean(ends, sizes(cohort), w)
    loop = trained(FedProx(0.5), start(module=module), accumulate_grad_batches=2)
    assert_close(state(loop.module), w)


class NoRound(pl.Callback):
    """Knows whether a round has begun."""

    begun = 0

    def on_train_epoch_start(self, *_):
        self.begun += 1


@pytest.mark.parametrize(
    "algorithm",
    [PerFedAvg(), PFedMe(), APFL(), FedRoD(), FedBABU() + PerFedAvg()],
    ids=lambda a: a.name,
)
@pytest.mark.parametrize(
    ("module", "settings", "reason"),
    [
        (Manual, {}, "manual optimization"),
        (Hooked, {}, "Hooked.on_before_optimizer_step"),
        (Net, {"profiler": "simple"}, "a profiler"),
        (Net, {"accumulate_grad_batches": 2}, "trainer.accumulate_grad_batches=2"),
    ],
)
def test_who_says_how_to_train_on_a_batch_is_alone_with_that(algorithm, module, settings, reason):
    seen = NoRound()
    with pytest.raises(ConfigError) as raised:
        fit(net(module=module), algorithm, callbacks=[seen], **settings)
    assert str(raised.value) == (
        f"{algorithm.name} says how to train on a batch, and so does {reason}; "
        "do without the latter."
    )
    assert seen.begun == 0


def test_accumulation_that_begins_later_is_refused_when_it_does():
    seen = NoRound()
    callbacks = [GradientAccumulationScheduler({0: 1, 1: 2}), seen]
    with pytest.raises(ConfigError, match=r"and so does trainer\.accumulate_grad_batches=2"):
        fit(net(), PerFedAvg(), callbacks=callbacks)
    assert seen.begun == 2


def test_clients_at_once_are_refused_for_what_takes_part_in_steps():
    for algorithm in (FedProx(), Ditto(), FedRep(), FedBABU() + FedProx()):
        with pytest.raises(ConfigError, match=r"clients_per_kernel=2: .*takes part in their steps"):
            fit(net(), algorithm, federation={"clients_per_kernel": 2})


@pytest.mark.parametrize("algorithm", [FedAvgM(), FedAdam(), FedBN()], ids=lambda a: a.name)
def test_clients_at_once_go_with_what_acts_at_the_server_or_is_kept(algorithm):
    alone, grouped = net(norm=True), net(norm=True)
    clients = data((8, 6, 7, 6))
    one = loop_of(fit(alone, algorithm, datamodule=clients))
    settings = {"clients_per_kernel": 2}
    other = loop_of(fit(grouped, algorithm, datamodule=clients, federation=settings))
    assert_close(state(alone), state(grouped), 1e-4)
    for client in one.personal:
        assert_close(one.personal_model(client), other.personal_model(client), 1e-4)
