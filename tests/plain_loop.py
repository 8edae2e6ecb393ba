"""The authors' method as a plain loop, without this project: what a recorded run gives *here*.

Training amplifies the last bit of every sum, so a recording made on another kind of processor is
only as near as this loop comes to it. On the recording's own kind the loop reproduces it exactly.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.traces import Trace

State = dict[str, Tensor]


class PlainRun:
    """A recorded run, repeated from its data, initial weights and orders.

    Args:
        trace: The recording.

    Attributes:
        rounds: The broadcast state after each round.
        tuned: Client 0 after fine-tuning from the last of them.
    """

    def __init__(self, trace: Trace) -> None:
        self._x = trace.tensors["train.images"].float()
        self._y = trace.tensors["train.labels"]
        self._net = _network(trace)
        self._s = trace.settings
        self.rounds: list[State] = []
        state = trace.state("init")
        lr, total = self._s["lr"], self._s["rounds"]
        for index, recorded in enumerate(self._s["per_round"]):
            locals_ = [self._update(state, update, lr) for update in recorded["updates"]]
            state = state | _mean(locals_, _keys(state, self._s["aggregate_part"]))
            self.rounds.append(state)
            if index + 1 in (total // 2, 3 * total // 4):
                lr *= 0.1
        tune = self._s["finetune"]
        self.tuned = self._train(
            state, tune["part"], tune["index_order"][0], tune["lr"], tune["momentum"], 0.0
        )

    def _update(self, state: State, update: dict, lr: float) -> State:
        s = self._s
        return self._train(
            state, s["update_part"], update["index_order"], lr, s["momentum"], s["weight_decay"]
        )

    def _train(
        self,
        start: State,
        part: str,
        orders: Iterable[Sequence[int]],
        lr: float,
        momentum: float,
        weight_decay: float,
    ) -> State:
        self._net.load_state_dict(start)
        self._net.train()
        moving = set(_keys(start, part))
        for key, parameter in self._net.named_parameters():
            parameter.requires_grad_(key in moving)
        optimizer = torch.optim.SGD(
            [p for p in self._net.parameters() if p.requires_grad],
            lr=lr,
            momentum=momentum,
            weight_decay=weight_decay,
        )
        for order in orders:
            for rows in torch.tensor(order).split(self._s["batch_size"]):
                optimizer.zero_grad()
                F.cross_entropy(self._net(self._x[rows]), self._y[rows]).backward()
                optimizer.step()
        return {key: value.clone() for key, value in self._net.state_dict().items()}


def _network(trace: Trace) -> nn.Module:
    """Return the 4convNet, spelled out; of other networks, the shipped one."""
    if not trace.settings["model"].startswith("cnn"):
        return trace.model()
    blocks = [
        nn.Sequential(
            nn.Conv2d(channels, 64, 3, padding=1),
            nn.BatchNorm2d(64, track_running_stats=False),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        for channels in (3, 64, 64, 64)
    ]
    body = nn.Sequential(OrderedDict(features=nn.Sequential(*blocks), flatten=nn.Flatten()))
    head = nn.Linear(256, trace.settings["num_classes"])
    return nn.Sequential(OrderedDict(body=body, head=head))


def _keys(state: State, part: str) -> list[str]:
    return [key for key in state if part == "full" or key.startswith("head.") == (part == "head")]


def _mean(states: Sequence[State], keys: Iterable[str]) -> State:
    total = {key: states[0][key].clone() for key in keys if states[0][key].is_floating_point()}
    for state in states[1:]:
        for key, value in total.items():
            value += state[key]
    return {key: value / len(states) for key, value in total.items()}
