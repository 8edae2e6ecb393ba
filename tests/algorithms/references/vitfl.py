"""ViT-FL: FedAvg with optimizers that live on, and cyclic weight transfer, as published."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from fedlightning import FedAvg, FederatedModule
from fedlightning.datamodules import ClientDatasets
from fedlightning.federation import Cyclic
from fedlightning.models import CosineWithWarmup
from tests.algorithms.references.reference import Reference, close
from tests.toys import loop_of, trainer

LR, MOMENTUM, CLIP, WARMUP, BATCH = 0.05, 0.9, 1.0, 3, 4


class Ordered(ClientDatasets):
    """Clients whose examples come in the given order, by round."""

    def __init__(self, reference: Reference, cyclic: bool) -> None:
        self.clients = sorted(k.split("_")[-1] for k in reference.under("in.x."))
        pairs = [(reference[f"in.x.train_{k}"], reference[f"in.y.train_{k}"]) for k in self.clients]
        super().__init__(train=pairs, test=pairs, batch_size=BATCH,
                         num_classes=int(max(y.max() for _, y in pairs)) + 1)  # fmt: skip
        self.pairs, self.reference, self.cyclic = pairs, reference, cyclic

    @property
    def rounds(self) -> int:
        return len({key.split(".")[0] for key in self.reference.under("in.order.")})

    def batches(
        self, client: int, split: str, *, key: Any = None, device: Any = "cpu"
    ) -> Iterator[Any]:
        if key is None:
            yield from super().batches(client, split, device=device)
            return
        number = key.round // len(self.clients) if self.cyclic else key.round
        order = self.reference[f"in.order.round{number}.train_{self.clients[client]}"]
        for rows in order.split(BATCH):
            yield tuple(part[rows] for part in self.pairs[client])


class Published(FederatedModule):
    """The published network's small stand-in; its learning rates are noted."""

    def __init__(self, start: dict[str, Tensor]) -> None:
        super().__init__(lr=LR, momentum=MOMENTUM)
        hidden, features = start["0.weight"].shape
        norm = nn.BatchNorm1d if "1.running_mean" in start else nn.LayerNorm
        self.net = nn.Sequential(nn.Linear(features, hidden), norm(hidden), nn.ReLU(),
                                 nn.Linear(hidden, len(start["3.bias"]))).double()  # fmt: skip
        self.net.load_state_dict(start)
        self.rates: dict[int, list[float]] = {}

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x)
        return logits

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=LR, momentum=MOMENTUM)
        schedule = CosineWithWarmup(optimizer, WARMUP)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])


rates: list[float] = []
"""The learning rate of every step, in order; beside the module, whose attributes are put back."""


def replay(reference: Reference) -> None:
    """Replay a reference of either kind."""
    rates.clear()
    if reference.name.startswith("vitfl_cyclic"):
        _cyclic(reference)
    else:
        _fedavg(reference)


def _fit(reference: Reference, cyclic: bool, **federation: Any) -> Any:
    data = Ordered(reference, cyclic)
    commits = data.rounds * (len(data.clients) if cyclic else 1)
    built = trainer(
        FedAvg(), rounds=commits, cohort=1.0, gradient_clip_val=CLIP,
        check_val_every_n_epoch=99, federation=federation,
    )  # fmt: skip
    built.fit(Published(reference.under("in.start.")), datamodule=data)
    return built


def _cyclic(reference: Reference) -> None:
    built = _fit(reference, cyclic=True, schedule=Cyclic("fixed"))
    tolerance = reference.tolerance()
    got = torch.tensor(rates, dtype=torch.float64)
    close(got, reference["out.lr_per_step"], tolerance, "learning rates")
    final = built.lightning_module.net.state_dict()
    for key, want in reference.under("out.final.").items():
        close(final[key], want, tolerance, key)


def _fedavg(reference: Reference) -> None:
    built = _fit(reference, cyclic=False, optimizer_state="keep", buffers="local")
    tolerance, data = reference.tolerance(), built.datamodule
    loop, final = loop_of(built), built.lightning_module.net.state_dict()
    steps = [data.num_batches(client) for client in range(len(data.clients))]
    for client, name in enumerate(data.clients):
        start = 0
        mine: list[float] = []
        for _ in range(data.rounds):
            begin = start + sum(steps[:client])
            mine += rates[begin : begin + steps[client]]
            start += sum(steps)
        got = torch.tensor(mine, dtype=torch.float64)
        close(got, reference[f"out.lr_per_step.train_{name}"], tolerance, f"rates of {name}")
        kept = loop.client_store.get(client)
        for key, want in reference.under(f"out.final.train_{name}.").items():
            close(kept.get(f"net.{key}", final[key]), want, tolerance, f"client {name} {key}")
        for number, want in reference.under(f"out.momentum.train_{name}.").items():
            momentum = kept[f"optimizer_state/0.{number}.momentum_buffer"]
            close(momentum, want, tolerance, f"momentum of {name}, {number}")
