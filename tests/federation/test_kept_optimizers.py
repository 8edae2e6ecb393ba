"""`federation.optimizer_state: keep`: a client's optimizers go on in its next turn."""

from __future__ import annotations

from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch.nn import functional as F

from fedlightning import Ditto, FedAvg, FedBABU, FedRep, LocalOnly
from fedlightning.core.seeding import Key
from fedlightning.federation import Buffered
from fedlightning.federation.sampling import FixedCohorts
from tests.algorithms.cases import ALGORITHMS, everything
from tests.engine.test_resume import Stop, StopAt, checkpoint
from tests.toys import Net, data, fit, loop_of, net, same, state

KEEP = {"optimizer_state": "keep"}
COHORTS = [(0, 1), (2, 1), (0, 2)]
SIZES = (8, 6, 7)


def turns_of(client: int, rounds: list[int], sizes: Any = SIZES) -> list[Any]:
    """Return a client's batches of some rounds."""
    made = data(sizes)
    made.setup()
    keys = [Key(0, "fit", round=r, client=client) for r in rounds]
    return [batch for key in keys for batch in made.batches(client, "train", key=key)]


def test_momentum_is_the_clients_and_not_that_of_its_place_in_the_cohort():
    module, lr, rho = net(lr_milestones=(), lr=0.1), 0.1, 0.9
    plain = net(lr_milestones=(), lr=0.1).double()
    fit(module, FedAvg(weights="uniform"), rounds=3, cohort=2, datamodule=data(SIZES),
        federation={**KEEP, "sampler": FixedCohorts([list(c) for c in COHORTS])})  # fmt: skip
    momenta = {c: {k: torch.zeros_like(p) for k, p in plain.named_parameters()} for c in range(3)}
    for number, cohort in enumerate(COHORTS):
        start, ends = state(plain), []
        for client in cohort:
            plain.load_state_dict(start)
            for x, y in turns_of(client, [number]):
                plain.zero_grad()
                F.cross_entropy(plain(x.double()), y).backward()
                with torch.no_grad():
                    for key, p in plain.named_parameters():
                        momenta[client][key].mul_(rho).add_(p.grad)
                        p.sub_(lr * momenta[client][key])
            ends.append(state(plain))
        plain.load_state_dict({k: (ends[0][k] + ends[1][k]) / 2 for k in start})
    for key, value in state(module).items():
        assert torch.allclose(value.double(), plain.state_dict()[key], atol=1e-6), key


class Rates(pl.Callback):
    """Notes the learning rate of every step, by client."""

    def __init__(self) -> None:
        self.rates: dict[int, list[float]] = {}

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, index: int) -> None:
        self.mine = self.rates.setdefault(batch.client, [])

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.mine.append(optimizer.param_groups[0]["lr"])


def test_a_schedule_by_step_runs_over_the_turns_that_each_client_is_planned_to_have():
    heard = Rates()
    fit(net(warmup_steps=1, lr=0.4), rounds=3, cohort=2, callbacks=[heard],
        datamodule=data((12, 6, 7)),
        federation={**KEEP, "sampler": FixedCohorts([[0, 1], [0, 2], [0, 1]])})  # fmt: skip
    for client, total in ((0, 9), (1, 4), (2, 2)):
        progress = torch.arange(total).double() / (total - 1)
        want = (0.2 * (1 + torch.cos(torch.pi * progress))).tolist()
        assert heard.rates[client] == pytest.approx(want, abs=1e-12)


def test_with_fresh_optimizers_it_runs_over_every_turn():
    heard = Rates()
    fit(net(warmup_steps=1, lr=0.4), rounds=2, cohort=1.0, callbacks=[heard],
        datamodule=data((12, 6)), federation={"local_epochs": 2})  # fmt: skip
    for client, steps in ((0, 6), (1, 4)):
        progress = torch.arange(steps).double() / (steps - 1)
        want = (0.2 * (1 + torch.cos(torch.pi * progress))).tolist()
        assert heard.rates[client] == pytest.approx(2 * want, abs=1e-12)


class Two(Net):
    """Two optimizers, stepped by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def configure_optimizers(self) -> Any:
        return [torch.optim.Adam(self.body.parameters(), lr=0.02),
                torch.optim.SGD(self.head.parameters(), lr=0.1, momentum=0.9)]  # fmt: skip

    def training_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.zero_grad()
        self.manual_backward(F.cross_entropy(self(x), y))
        for optimizer in self.optimizers():
            optimizer.step()


def test_several_optimizers_live_on():
    module, plain = net(module=Two), net(module=Two)
    built = fit(module, LocalOnly(), rounds=3, datamodule=data((8, 6)), federation=KEEP)
    adam, sgd = plain.configure_optimizers()
    for x, y in turns_of(0, [0, 1, 2], (8, 6)):
        plain.zero_grad()
        F.cross_entropy(plain(x), y).backward()
        adam.step()
        sgd.step()
    kept = loop_of(built).client_store.get(0)
    assert same({k: v for k, v in kept.items() if "/" not in k}, state(plain))
    moment = adam.state[plain.body[0].weight]["exp_avg"]
    assert torch.equal(kept["optimizer_state/0.0.exp_avg"], moment)
    assert "optimizer_state/1.0.momentum_buffer" in kept


def test_a_run_stopped_amid_a_round_goes_on_with_every_clients_schedule(tmp_path):
    settings = {"rounds": 4, "cohort": 2, "datamodule": data(SIZES), "federation": KEEP}
    whole, resumed = net(warmup_steps=2), net(5, warmup_steps=2)
    one = fit(whole, **settings)
    stop = StopAt("on_train_batch_start", 2, 1)
    with pytest.raises(Stop):
        fit(net(warmup_steps=2), folder=tmp_path, callbacks=[stop], **settings)
    two = fit(resumed, folder=tmp_path, ckpt=checkpoint(tmp_path, "last.ckpt"), **settings)
    assert same(state(whole), state(resumed))
    assert same(everything(one), everything(two))


def test_a_schedule_by_round_goes_on_for_all_alike():
    module, plain = net(lr_milestones=(0.5,)), net()
    fit(module, FedAvg(), rounds=4, datamodule=data((8,)), federation=KEEP)
    sgd = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9, fused=True)
    for number in range(4):
        sgd.param_groups[0]["lr"] = 0.1 if number < 2 else 0.01
        for x, y in turns_of(0, [number], (8,)):
            sgd.zero_grad()
            F.cross_entropy(plain(x), y).backward()
            sgd.step()
    assert all(torch.allclose(v, state(plain)[k], atol=1e-6) for k, v in state(module).items())


@pytest.mark.parametrize("name", [
    name for name in ALGORITHMS if name != "FedNova" and "corrected" not in name
])  # fmt: skip
def test_algorithms_go_with_it(name):
    found = []
    for _ in range(2):
        built = fit(
            net(norm=True, lr_milestones=()), ALGORITHMS[name], rounds=3, cohort=2,
            federation=KEEP, datamodule=data(SIZES),
        )  # fmt: skip
        found.append(everything(built))
    assert all(torch.isfinite(v).all() for v in found[0].values() if v.is_floating_point())
    assert same(*found)
    assert any("optimizer_state/" in key for key in found[0])


def test_what_an_algorithm_adds_is_as_without_it():
    """Ditto's own model has optimizers that start anew."""
    kept = []
    for settings in ({}, KEEP):
        built = fit(net(lr_milestones=()), Ditto(strength=0.5), rounds=1, federation=settings)
        kept.append({k: v for k, v in loop_of(built).client_store.get(0).items()
                     if not k.startswith("optimizer_state/")})  # fmt: skip
    assert kept[0]
    assert same(*kept)


def test_frozen_parts_have_no_state():
    for algorithm, frozen in ((FedBABU(), "head"), (FedRep(), "")):
        module = net(lr_milestones=())
        built = fit(module, algorithm, federation=KEEP)
        kept = {k for k in loop_of(built).client_store.get(0) if "momentum_buffer" in k}
        assert len(kept) == (2 if frozen else 4)


def test_it_goes_with_a_buffered_schedule():
    settings = {**KEEP, "schedule": Buffered(buffer=2, delays=[1.0, 2.0, 5.0, 3.0])}
    modules = [net(lr_milestones=()) for _ in range(2)]
    for module in modules:
        fit(module, rounds=6, federation=settings)
    assert same(*map(state, modules))
