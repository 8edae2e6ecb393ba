"""What optimizers remember, as tensors: whoever takes it up goes on to the last bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler as schedules

from fedlightning.core.messages import num_bytes
from fedlightning.core.optimizers import FreshOptimizers
from fedlightning.errors import ConfigError
from fedlightning.models import CosineWithWarmup

OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "fused": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, fused=True),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.1, amsgrad=True),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.1),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=0.1),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1),
    "ASGD": lambda p: torch.optim.ASGD(p, lr=0.1),
    "Rprop": lambda p: torch.optim.Rprop(p, lr=0.1),
    "LBFGS": lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=3),
}
SCHEDULES = {
    "none": lambda o: None,
    "cosine": lambda o: schedules.CosineAnnealingLR(o, T_max=9),
    "steps": lambda o: schedules.MultiStepLR(o, [1, 3, 5], gamma=0.5),
    "one cycle": lambda o: schedules.OneCycleLR(o, max_lr=0.2, total_steps=12),
    "function": lambda o: schedules.LambdaLR(o, lambda step: 1 / (1 + step)),
    "two in turn": lambda o: schedules.SequentialLR(
        o, [schedules.LinearLR(o, 0.1, total_iters=2), schedules.ExponentialLR(o, 0.9)], [2]
    ),
    "both": lambda o: schedules.ChainedScheduler(
        [schedules.ConstantLR(o, 0.5, total_iters=3), schedules.ExponentialLR(o, 0.9)]
    ),
    "warm-up": lambda o: CosineWithWarmup(o, 2, 9),
}


class Side:
    """A network with an optimizer and a schedule of its own."""

    def __init__(self, optimizer: Any, schedule: Any = SCHEDULES["none"]) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(12, 2))
        if optimizer is OPTIMIZERS["LBFGS"]:  # which wants one group of contiguous weights
            self.optimizer = optimizer(list(self.net.parameters()))
        else:
            self.net.to(memory_format=torch.channels_last)
            parts = self.net[0].parameters(), self.net[2].parameters()
            self.optimizer = optimizer([{"params": part} for part in parts])
        self.schedule = schedule(self.optimizer)
        self.fresh = FreshOptimizers([self.optimizer], [self.schedule] if self.schedule else [])

    def train(self, steps: range) -> None:
        for step in steps:
            x = torch.randn(5, 2, 4, 4, generator=torch.Generator().manual_seed(step))

            def closure(x: Any = x) -> Any:
                self.optimizer.zero_grad()
                loss = self.net(x).square().mean()
                loss.backward()
                return loss

            self.optimizer.step(closure)
            if self.schedule:
                self.schedule.step()

    def weights(self) -> list[Any]:
        return [p.detach().clone() for p in self.net.parameters()]


@pytest.mark.filterwarnings("ignore:.*epoch parameter:UserWarning")
@pytest.mark.parametrize(("optimizer", "schedule"), [
    *((name, "none") for name in OPTIMIZERS), *(("momentum", name) for name in SCHEDULES),
    ("AdamW", "warm-up"),
])  # fmt: skip
def test_training_in_two_places_is_training_in_one(optimizer, schedule):
    made = OPTIMIZERS[optimizer], SCHEDULES[schedule]
    whole, first, second = Side(*made), Side(*made), Side(*made)
    whole.train(range(7))
    first.train(range(4))
    memory = {name: value.clone() for name, value in first.fresh.memory().items()}
    before = {name: value.clone() for name, value in memory.items()}
    second.net.load_state_dict(first.net.state_dict())
    second.fresh.remember({name: v.contiguous() for name, v in memory.items()})
    second.train(range(4, 7))
    assert all(map(torch.equal, whole.weights(), second.weights()))
    assert all(torch.equal(before[name], memory[name]) for name in memory)  # it was copied
    second.fresh.restore()
    third = Side(*made)
    second.net.load_state_dict(third.net.state_dict())
    second.train(range(7))
    assert all(map(torch.equal, whole.weights(), second.weights()))  # nothing has stuck


def test_its_names_and_its_bytes():
    side = Side(OPTIMIZERS["momentum"])
    side.train(range(1))
    memory = side.fresh.memory()
    assert set(memory) == {*(f"0.{n}.momentum_buffer" for n in range(4)), "rest"}
    assert memory["rest"].dtype is torch.uint8
    floats = sum(p.numel() for p in side.net.parameters())
    assert num_bytes(memory) == 4 * floats + len(memory["rest"])


def test_hyperparameters_that_a_step_has_changed_are_among_it_and_no_others():
    side = Side(OPTIMIZERS["momentum"], SCHEDULES["one cycle"])
    side.train(range(3))
    text = bytes(side.fresh.memory()["rest"].tolist()).decode()
    assert '["lr", ' in text
    assert '["momentum", ' in text
    assert "weight_decay" not in text
    plain = Side(OPTIMIZERS["momentum"])
    plain.train(range(3))
    assert '["lr", ' not in bytes(plain.fresh.memory()["rest"].tolist()).decode()


def test_what_cannot_be_said_is_refused():
    side = Side(OPTIMIZERS["momentum"])
    side.train(range(1))
    side.optimizer.state[side.net[0].weight]["odd"] = object()
    with pytest.raises(ConfigError, match=r"SGD remembers 0\.0\.odd=<object .* set it to fresh"):
        side.fresh.memory()


def test_the_memory_of_other_schedules_is_refused():
    memory = Side(OPTIMIZERS["SGD"], SCHEDULES["cosine"]).fresh.memory()
    with pytest.raises(ConfigError, match="that of 1 schedules, and the module has 0"):
        Side(OPTIMIZERS["SGD"]).fresh.remember(memory)
