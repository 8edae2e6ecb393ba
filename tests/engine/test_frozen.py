"""Parameters that the user has frozen: not sent while no client changes them."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning.callbacks import BaseFinetuning
from torch import nn
from torch.multiprocessing import start_processes

from fedlightning import (
    SCAFFOLD,
    Algorithm,
    FedAdam,
    FedAvg,
    FedBABU,
    FederatedModule,
    FedProx,
)
from fedlightning.engine.frozen import FrozenParameters
from tests.toys import Net, data, fit, loop_of, net, same, state, trainer

BYTES = "communication/bytes_up"
SIZES = (8, 6, 7, 6)


class LowRank(nn.Module):
    """A linear layer that is frozen, and a trainable change of rank 1."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.lora_A = nn.Parameter(torch.randn(1, base.in_features))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        base: torch.Tensor = self.base(x)
        return base + x @ self.lora_A.T @ self.lora_B.T


class Adapted(FederatedModule):
    """A frozen network with adapters, in the head as well."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(lr=0.1, **kwargs)
        self.body = nn.Sequential(LowRank(nn.Linear(4, 5)), nn.ReLU())
        self.head = LowRank(nn.Linear(5, 3))


ADAPTERS = {"body.0.lora_A": 4, "body.0.lora_B": 5, "head.lora_A": 5, "head.lora_B": 3}
ADAPTER = Algorithm(train="adapter", share="adapter")


@pytest.mark.parametrize(
    ("algorithm", "sent"),
    [
        (FedAvg(), 17),
        (FedProx(0.1) + FedAdam(), 17),
        (FedBABU(), 9),
        (ADAPTER, 17),
        (SCAFFOLD(), 2 * 17),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_only_adapters_of_a_frozen_network_are_sent_and_counted(algorithm, sent):
    names = {"parts": {"adapter": "*.lora_?"}} if algorithm is ADAPTER else {}
    module = net(module=Adapted, **names)
    before = state(module)
    built = fit(module, algorithm, rounds=2)
    assert float(built.callback_metrics[BYTES]) == 4 * sent * 4
    assert float(built.callback_metrics["communication/bytes_down"]) == 4 * sent * 4
    assert set(loop_of(built).roles.shared) <= set(ADAPTERS)
    changed = {key for key, value in state(module).items() if not torch.equal(value, before[key])}
    assert changed == set(loop_of(built).roles.shared)
    assert not module.head.base.weight.requires_grad


def test_what_is_not_sent_is_said_once(caplog):
    with caplog.at_level(logging.INFO, logger="pytorch_lightning"):
        fit(net(module=Adapted), FedAvg(), rounds=2)
    assert [r.message for r in caplog.records if "frozen" in r.message] == [
        "43 of 60 parameters are frozen and not sent."
    ]
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="pytorch_lightning"):
        fit(net(), FedBABU(), rounds=1)
    assert not [r for r in caplog.records if "frozen" in r.message]


def test_what_the_algorithm_freezes_is_shared_as_it_says():
    built = fit(net(), Algorithm(train="body", share="full"))
    assert len(loop_of(built).roles.shared) == 4


def test_buffers_of_frozen_layers_are_sent():
    module = net(norm=True)
    module.body[1].requires_grad_(False)
    loop = loop_of(fit(module, FedAvg(), datamodule=data(SIZES)))
    shared = {key for key in loop.roles.shared if key.startswith("body.1")}
    assert shared == {f"body.1.{n}" for n in ("running_mean", "running_var", "num_batches_tracked")}


class Teacher(Net):
    """Has a frozen copy of a layer that follows it, every so many batches, by the module's code."""

    def __init__(self, every: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.teacher = nn.Linear(4, 5).requires_grad_(False)
        self.every = every

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if (batch_idx + 1) % self.every == 0:
            self.teacher.weight.data.lerp_(self.body[0].weight.data, 0.5)


SHORT = (4, 6, 7, 5)  # the first client has but one batch


def teacher(every: int) -> Any:
    return net(module=Teacher, every=every, lr_milestones=())


def run(module: Any, cohorts: Any, rounds: int = 1, algorithm: Any = None, **kwargs: Any) -> Any:
    """Fit a module and return the trainer; the cohorts are given."""
    settings = {"rounds": rounds, "cohort": len(cohorts[0]), **kwargs}
    built = trainer(algorithm or FedAvg(), **settings)
    loop_of(built).cohort = cohorts.__getitem__
    built.fit(module, datamodule=data(SHORT))
    return built


def teachers_by_hand(every: int) -> torch.Tensor:
    """Return the mean of the teachers of four clients that each train alone."""
    total = torch.zeros(5, 4, dtype=torch.float64)
    for client, size in enumerate(SHORT):
        run(alone := teacher(every), [(client,)])
        total += size * state(alone)["teacher.weight"].double()
    return total / sum(SHORT)


@pytest.mark.parametrize("every", [1, 2])
def test_what_the_module_changes_by_itself_is_averaged_although_frozen(every, caplog):
    module = teacher(every)
    before = state(module)
    with caplog.at_level(logging.INFO, logger="pytorch_lightning"):
        built = run(module, [(0, 1, 2, 3)])
    after = state(module)
    torch.testing.assert_close(
        after["teacher.weight"].double(), teachers_by_hand(every), atol=1e-7, rtol=0
    )
    assert torch.equal(after["teacher.bias"], before["teacher.bias"])
    assert {"teacher.weight", "teacher.bias"} - {*loop_of(built).roles.shared} == {"teacher.bias"}
    assert "teacher.weight: sent although frozen, because a client has changed it." in caplog.text


@pytest.mark.parametrize("every", [1, 2])
def test_a_round_that_is_run_again_counts_once(every):
    built = run(teacher(every), [(0, 1, 2, 3), (3, 2, 1, 0)], rounds=2)
    assert built.global_step == 8
    assert float(built.callback_metrics[BYTES]) == 4 * 4 * (43 + 20)  # but for the teacher's bias


def everything(built: Any) -> dict[str, torch.Tensor]:
    loop = loop_of(built)
    server = {f"server {key}": value for key, value in loop.server.state_dict().items()}
    return {**state(loop.module), **server}


COHORTS = [(0, 1, 2, 3), (2, 0, 3, 1)]
RUNS: dict[str, Callable[..., Any]] = {
    f"{name} {every}": partial(run, cohorts=COHORTS, rounds=2, algorithm=algorithm)
    for every in (1, 2)
    for name, algorithm in (("FedAvg", FedAvg()), ("FedAdam", FedAdam()))
}


def _work(rank: int, port: int, folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        "LOCAL_RANK": str(rank), "NODE_RANK": "0", "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    for name, start in RUNS.items():
        two = {"accelerator": "cpu", "devices": 2, "strategy": "ddp"}
        torch.save(everything(start(teacher(int(name[-1])), **two)), folder / f"{name} {rank}")


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_two_workers_agree_on_what_is_sent_although_frozen(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start_processes(_work, (port, tmp_path), nprocs=2, start_method="fork")
    for name, start in RUNS.items():
        alone = everything(start(teacher(int(name[-1]))))
        for rank in range(2):
            assert same(torch.load(tmp_path / f"{name} {rank}", weights_only=True), alone)


class Unfreezing(BaseFinetuning):
    """Lets the first layer train from the second round on."""

    def freeze_before_training(self, pl_module: Any) -> None:
        self.freeze(pl_module.body[0])

    def finetune_function(self, pl_module: Any, epoch: int, optimizer: Any) -> None:
        if epoch == 1:
            self.unfreeze_and_add_param_group(pl_module.body[0], optimizer, lr=0.1)


@pytest.mark.parametrize("algorithm", [FedAvg(), FedAdam()], ids=lambda a: a.name)
def test_what_a_callback_unfreezes_is_sent_from_that_round_on(algorithm):
    module = net(lr_milestones=())
    before = state(module)
    first = fit(module, algorithm, rounds=1, callbacks=[Unfreezing()])
    assert float(first.callback_metrics[BYTES]) == 4 * 4 * 18  # the head alone
    assert torch.equal(state(module)["body.0.weight"], before["body.0.weight"])
    module = net(lr_milestones=())
    second = fit(module, algorithm, rounds=2, callbacks=[Unfreezing()])
    assert float(second.callback_metrics[BYTES]) == 4 * 4 * (18 + 25)
    assert set(loop_of(second).roles.shared) == set(before)
    assert not torch.equal(state(module)["body.0.weight"], before["body.0.weight"])


def test_the_servers_optimizer_sees_no_change_of_what_is_frozen():
    module = net()
    module.body.requires_grad_(False)
    before = state(module)
    built = fit(module, FedAdam(beta2=0.5, tau=1.0), rounds=2)
    v = loop_of(built).server.state_dict()["optimizer/v/body.0.bias"]
    assert v.tolist() == [0.25] * 5  # tau squared, halved in each round
    assert torch.equal(state(module)["body.0.bias"], before["body.0.bias"])


class Thawing(Net):
    """Lets its frozen body train from the second local epoch on."""

    def on_train_epoch_start(self) -> None:
        self.epoch += 1
        self.body.requires_grad_(self.epoch > 0)

    def on_train_start(self) -> None:
        self.epoch = -1

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_what_a_client_trains_after_all_is_averaged():
    frozen, free = net(module=Thawing), net(module=Thawing)
    frozen.body.requires_grad_(False)
    two = {"federation": {"local_epochs": 2}}
    fit(frozen, FedAvg(), **two)
    fit(free, FedAvg(), **two)  # is frozen in the first epoch all the same, and shared anyway
    assert same(state(frozen), state(free))


def test_frozen_weights_of_any_dtype_and_tied_ones_are_left_out():
    module = net()
    module.codes = nn.Parameter(torch.arange(3), requires_grad=False)
    module.again = module.codes
    module.wide = nn.Parameter(torch.rand(2, dtype=torch.float64), requires_grad=False)
    wide = module.wide.clone()
    built = fit(module, FedAvg())
    assert not {"codes", "again", "wide"} & set(loop_of(built).roles.shared)
    assert torch.equal(module.wide, wide)


def test_a_value_that_is_not_a_number_counts_as_changed():
    module = nn.Linear(1, 1).requires_grad_(False)
    frozen = FrozenParameters(module, ["weight"])
    state_of = {"weight": torch.tensor([[float("nan")]])}
    assert frozen.keys == {"weight"}
    assert frozen.changed(state_of, state_of) == {"weight"}
    assert frozen.send(["weight", "bias"])
    assert frozen.shared == ("weight",)
    assert not frozen.changed(state_of, state_of)
