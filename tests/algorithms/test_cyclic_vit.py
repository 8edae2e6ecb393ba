"""Cyclic weight transfer: one model, one optimizer and one schedule go from client to client."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedlightning import FedAvg, FederatedModule, FedNova, FedPer
from fedlightning.algorithms.aggregation import CoordinateMedian
from fedlightning.core.messages import num_bytes
from fedlightning.core.seeding import Key
from fedlightning.datamodules import ClientDatasets
from fedlightning.errors import CheckpointError, ConfigError
from fedlightning.federation import Cyclic, Federation
from fedlightning.federation.uplink import ClipNorm, Int8
from fedlightning.models import CosineWithWarmup, SmallViT
from fedlightning.storage.checkpoint_reader import read_checkpoint
from tests.engine.test_resume import Stop, StopAt, checkpoint
from tests.toys import Net, client_states, data, loop_of, net, same, state, trainer

SIZES = (8, 6, 7)  # two batches each
OPTIMIZERS = {
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.05),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1),
}


class Scheduled(Net):
    """Any optimizer, and a stock schedule by step over the whole run."""

    def __init__(self, optimizer: str = "momentum", steps: int | None = None) -> None:
        super().__init__(norm=True)
        self.optimizer, self.steps = optimizer, steps

    def configure_optimizers(self) -> Any:
        optimizer = OPTIMIZERS[self.optimizer](self.parameters())
        steps = self.steps or self.trainer.estimated_stepping_batches
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def cyclic(module: Any, turns: int, sizes: Any = SIZES, **kwargs: Any) -> Any:
    """Fit so many turns and return the trainer."""
    settings = {"schedule": Cyclic("fixed"), **kwargs.pop("federation", {})}
    built = trainer(rounds=turns, federation=settings, **kwargs)
    built.fit(module, datamodule=data(sizes))
    return built


def batches_of(turn: int, client: int, sizes: Any = SIZES, epochs: int = 1) -> list[Any]:
    made = data(sizes)
    made.setup()
    key = Key(0, "fit", round=turn, client=client)
    return [b for e in range(epochs) for b in made.batches(client, "train", key=key.at(epoch=e))]


@pytest.mark.parametrize("sizes", [SIZES[:1], SIZES[:2]], ids=["one client", "two clients"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_it_is_training_on_the_clients_epochs_in_turn_with_one_optimizer(optimizer, sizes):
    turns, steps = 4, 16
    module = net(module=Scheduled, optimizer=optimizer)
    plain = copy.deepcopy(module)
    plain.steps = steps
    (sgd,), (config,) = plain.configure_optimizers()
    schedule = config["scheduler"]
    cyclic(module, turns, sizes, federation={"local_epochs": 2})
    plain.train()
    count = 0
    for turn in range(turns):
        for x, y in batches_of(turn, turn % len(sizes), sizes, epochs=2):
            sgd.zero_grad()
            F.cross_entropy(plain(x), y).backward()
            sgd.step()
            schedule.step()
            count += 1
    assert count == steps
    assert same(state(module), state(plain))
    assert int(module.body[1].num_batches_tracked) == steps


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_run_resumed_between_two_clients_gives_the_same_bits(optimizer, tmp_path):
    whole = net(module=Scheduled, optimizer=optimizer)
    cyclic(whole, 6)
    stop = StopAt("on_train_epoch_start", 4)
    with pytest.raises(Stop):
        cyclic(net(module=Scheduled, optimizer=optimizer), 6, folder=tmp_path, callbacks=[stop])
    resumed = net(3, module=Scheduled, optimizer=optimizer)
    second = trainer(rounds=6, folder=tmp_path, federation={"schedule": Cyclic()})
    second.fit(resumed, datamodule=data(SIZES), ckpt_path=checkpoint(tmp_path, "last.ckpt"))
    assert same(state(whole), state(resumed))


def test_two_workers_give_the_bits_of_one(tmp_path):
    found = []
    for workers in ({}, {"accelerator": "cpu", "devices": 2, "strategy": "ddp_fork"}):
        folder = tmp_path / str(len(workers))
        cyclic(net(module=Scheduled), 4, folder=folder, **workers)
        found.append(read_checkpoint(next(folder.rglob("last.ckpt")))["state_dict"])
    assert same(*found)


class Line(FederatedModule):
    """One weight, whose loss is what each client makes of it."""

    def __init__(self) -> None:
        super().__init__(lr=1.0, momentum=0.9, lr_milestones=())
        self.w = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.w

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self(batch[0]).sum()


@pytest.mark.parametrize(("lifetime", "end"), [("pass_on", -1.9), ("fresh", -1.0), ("keep", -1.0)])
def test_momentum_moves_on(lifetime, end):
    x = [torch.ones(1, 1), torch.zeros(1, 1)]  # f = w and f = 0 w
    clients = ClientDatasets(train=[(v, torch.zeros(1).long()) for v in x], num_classes=1,
                             test=[(v, torch.zeros(1).long()) for v in x])  # fmt: skip
    for turns, want in ((1, -1.0), (2, end)):
        module = Line()
        built = trainer(rounds=turns, check_val_every_n_epoch=99,
                        federation={"schedule": Cyclic(), "optimizer_state": lifetime})  # fmt: skip
        built.fit(module, datamodule=clients)
        assert float(module.w.detach()) == pytest.approx(want, abs=1e-7)


class Images(ClientDatasets):
    """Three clients with images of 8x8 pixels."""

    def __init__(self) -> None:
        def some(n: int, seed: int) -> tuple[Tensor, Tensor]:
            x = torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
            return x, x.flatten(1)[:, :3].argmax(dim=1)

        train = [some(n, seed) for seed, n in enumerate(SIZES)]
        test = [some(4, 9 + seed) for seed in range(len(SIZES))]
        super().__init__(train=train, test=test, batch_size=4, num_classes=3)


class Convolutions(FederatedModule):
    """A small convolutional network with a norm of choice."""

    def __init__(self, norm: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3), norm(), nn.ReLU(), nn.Flatten())
        self.head = nn.Linear(4 * 36, 3)


NETWORKS = {
    "ViT": lambda **k: SmallViT(dim=8, depth=1, heads=2, num_classes=3, **k),
    "GroupNorm": lambda **k: Convolutions(lambda: nn.GroupNorm(2, 4), **k),
    "BatchNorm": lambda **k: Convolutions(lambda: nn.BatchNorm2d(4), **k),
}


class Rates(pl.Callback):
    """Notes the learning rate of every step."""

    def __init__(self) -> None:
        self.rates: list[float] = []

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.rates.append(optimizer.param_groups[0]["lr"])


def by_formula(lr: float, warmup: int, total: int) -> list[float]:
    """Return the published learning rates of steps 1, 2, ..., total."""
    cosine = torch.cos(torch.pi * (torch.arange(1, total + 1).double() - warmup) / (total - warmup))
    return [lr * i / warmup if i < warmup else lr * (1 + float(cosine[i - 1])) / 2
            for i in range(1, total + 1)]  # fmt: skip


@pytest.mark.parametrize("network", NETWORKS)
def test_one_schedule_runs_any_network(network):
    schedule, heard = Cyclic("shuffled"), Rates()
    module = NETWORKS[network](lr=0.05, warmup_steps=3)
    before = state(module)
    built = trainer(rounds=6, callbacks=[heard], federation={"schedule": schedule})
    built.fit(module, datamodule=Images())
    assert heard.rates == pytest.approx(by_formula(0.05, 3, 12), abs=1e-12)
    assert heard.rates[0] == pytest.approx(0.05 / 3)
    assert heard.rates[-1] == pytest.approx(0.0, abs=1e-12)
    assert all(torch.isfinite(value).all() for value in state(module).values())
    assert not same(before, state(module))


class Listening(pl.Callback):
    """Notes the bytes and the extras of every message."""

    def __init__(self) -> None:
        self.extras: list[dict[str, Tensor]] = []
        self.bytes: list[tuple[int, int]] = []

    def on_client_end(self, trainer: Any, pl_module: Any, update: Any) -> None:
        self.extras.append({key: value.clone() for key, value in update.extras.items()})
        self.bytes.append((update.bytes_up, update.bytes_down))


def test_the_message_holds_the_optimizers_state_and_counts_its_bytes():
    heard, module = Listening(), net(module=Scheduled)
    built = cyclic(module, 4, callbacks=[heard])
    model = num_bytes(state(module))
    parameters = len(list(module.parameters()))
    for extras in heard.extras:
        names = {f"optimizer_state/0.{n}.momentum_buffer" for n in range(parameters)}
        assert set(extras) == {*names, "optimizer_state/rest"}
    sizes = [num_bytes(extras) for extras in heard.extras]
    assert [up - model for up, _ in heard.bytes] == sizes
    assert [down - model for _, down in heard.bytes] == [0, *sizes[:-1]]
    assert same(heard.extras[-1], loop_of(built).server.state_dict())
    assert not any(loop_of(built).client_store.get(client) for client in range(len(SIZES)))


def test_a_client_that_is_tried_again_leaves_no_trace():
    class Once(Scheduled):
        failures: list[int] = []  # noqa: RUF012

        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            if self.trainer.current_epoch == 2 and not self.failures:
                self.failures.append(batch_idx)
                raise ValueError("bad luck")

    whole, retried = net(module=Scheduled), net(module=Once)
    cyclic(whole, 5)
    with pytest.warns(UserWarning, match=r"client 2, round 2: .*\(tried again\)"):
        cyclic(retried, 5, federation={"on_client_failure": "retry"})
    assert Once.failures == [0]
    assert same(state(whole), state(retried))


def test_it_goes_with_compression():
    module = net(module=Scheduled)
    cyclic(module, 3, federation={"compression": Int8(error_feedback=False)})
    assert all(torch.isfinite(value).all() for value in state(module).values())


@pytest.mark.parametrize(("settings", "message"), [
    ({"schedule": None}, "train one after another: set federation.schedule to Cyclic"),
    ({"algorithm": FedPer()}, "FedPer do not go together: clients do not send all"),
    ({"algorithm": FedNova()}, "LocalProgress needs optimizers that start anew"),
    ({"uplink": [ClipNorm(1.0)]}, r"ClipNorm\(max_norm=1.0\) do not go together"),
    ({"aggregator": CoordinateMedian()}, "cannot protect 'optimizer_state'"),
    ({"clients_per_kernel": 2}, "optimizer_state=pass_on takes part in their steps; set it to 1"),
    ({"optimizer_state": "pass"}, "must be one of fresh, keep, pass_on, got 'pass'"),
], ids=str)  # fmt: skip
def test_what_does_not_go_with_it_is_refused(settings, message):
    given = {"algorithm": FedAvg(), "schedule": Cyclic(), "cohort_size": 1.0,
             "optimizer_state": "pass_on", **settings}  # fmt: skip
    with pytest.raises(ConfigError, match=message):
        Federation(**given)


def test_the_default_follows_the_schedule():
    assert Federation(algorithm=FedAvg()).optimizer_lifetime == "fresh"
    assert Federation(algorithm=FedAvg(), schedule=Cyclic()).optimizer_lifetime == "pass_on"
    alone = Federation(algorithm=FedAvg(), cohort_size=1, optimizer_state="pass_on")
    assert [type(hook).__name__ for hook in alone.client_algorithm.hooks] == [
        "PassesOptimizerStateOn"
    ]
    assert alone.algorithm.hooks == ()


def test_a_run_cannot_be_resumed_under_another_lifetime(tmp_path):
    cyclic(net(), 2).save_checkpoint(tmp_path / "a.ckpt")
    built = trainer(rounds=3, federation={"schedule": Cyclic(), "optimizer_state": "fresh"})
    with pytest.raises(CheckpointError, match=r"federation\.optimizer_state: pass_on -> fresh"):
        built.fit(net(), datamodule=data(SIZES), ckpt_path=tmp_path / "a.ckpt")


def test_the_number_of_steps_must_be_known():
    built = trainer(rounds=None, federation={"schedule": Cyclic()}, max_steps=4)
    with pytest.raises(ConfigError, match=r"set trainer\.max_epochs"):
        built.fit(net(module=Scheduled), datamodule=data(SIZES))


def test_torch_has_the_same_cosine_from_zero():
    weights = [torch.zeros(1, requires_grad=True)]
    mine = torch.optim.SGD(weights, lr=0.3)
    schedule = CosineWithWarmup(mine, 0, 6, first=0)
    theirs = torch.optim.SGD(weights, lr=0.3)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(theirs, T_max=6)
    for _ in range(6):
        assert mine.param_groups[0]["lr"] == pytest.approx(theirs.param_groups[0]["lr"], abs=1e-12)
        for optimizer, one in ((mine, schedule), (theirs, cosine)):
            optimizer.step()
            one.step()


def test_clients_states_are_empty_in_the_checkpoint(tmp_path):
    cyclic(net(), 3, folder=tmp_path)
    assert client_states(read_checkpoint(next(tmp_path.rglob("last.ckpt")))) == {}
