"""pFedHR: networks made of trained clients' layers against the same ones with new weights.

Scikit-learn's digits, four architectures of two clients each, label skew, 125 public images. After
30 rounds the clients' networks are cut and reassembled; the candidates, and the same candidates
re-initialised, are fine-tuned for 20 epochs on the public images and measured on the clients' test
images. Beside it the mean accuracy of clients under pFedHR, and its three baselines: local
training, local training that has the public images too, and local training with a teacher that was
trained on the public images alone; that teacher itself, and FedMD.
"""

from __future__ import annotations

from typing import Any

import torch
from effects_of import Demand
from effects_of._runs import fit, mean_accuracy, seeded
from torch import Tensor, nn

from fedlightning import (
    Algorithm,
    FederatedTrainer,
    FedMD,
    LocalOnly,
    PFedHR,
)
from fedlightning.algorithms import Teacher
from fedlightning.algorithms.pfedhr import fine_tune, reassemble
from fedlightning.core.seeding import Key
from fedlightning.datamodules import CENTRAL, ClientDatasets, Digits, Dirichlet, PublicShare
from fedlightning.models import LayeredNetwork, LayeredNetworks, StitchedNetwork

ARCHITECTURES = {
    "plain": ["fc32"],
    "deep": ["fc32", "fc16"],
    "conv": ["conv8", "pool2", "fc32"],
    "convs": ["conv8", "pool2", "conv16", "fc32"],
}
CLIENTS, PUBLIC, GROUPS, STRENGTH, ROUNDS, BATCH = 8, 125, 2, 1.0, 30, 10
SGD = {"lr": 0.1, "momentum": 0.0, "lr_milestones": ()}


class FixedTeacher(Teacher):
    """Has one teacher for all clients and rounds, and sends nothing."""

    messages = ()

    def __init__(self, network: nn.Module) -> None:
        super().__init__(STRENGTH)
        self.network = network

    def on_update_start(self, context: Any) -> None:
        """Take the teacher."""
        context.scratch["pfedhr_teacher"] = self.network
        context.watch(f"networks.{context.module.present}")

    def on_update_end(self, context: Any) -> None:
        """Send nothing."""

    def on_aggregate(self, aggregation: Any) -> dict[str, Tensor]:
        """Remember nothing."""
        return {}


def clients(seed: int) -> PublicShare:
    """Return eight clients of about a hundred images, and the public ones."""
    digits = Digits(test_fraction=0.5, num_clients=CLIENTS, batch_size=BATCH,
                    partition=Dirichlet(0.5), seed=seed)  # fmt: skip
    digits.setup()
    total = sum(digits.num_examples(client) for client in range(CLIENTS))
    data = PublicShare(digits, PUBLIC / total)
    data.setup()
    return data


def whole(data: PublicShare, client: int, split: str) -> tuple[Tensor, Tensor]:
    """Return all examples of a split."""
    x, y = (torch.cat(part) for part in zip(*data.batches(client, split), strict=True))
    return x, y


def measure(seed: int) -> dict[str, float]:
    """Return the mean accuracies of candidates and of clients."""
    data = clients(seed)
    x, y = whole(data, CENTRAL, "public")
    key = Key(seed, "server", client=CLIENTS)
    teacher = seeded(seed + 1, LayeredNetwork, layers=ARCHITECTURES["convs"])
    fine_tune(teacher, x, y, 50, key)
    teacher.requires_grad_(False)
    alone = Algorithm(share="none", local=[FixedTeacher(teacher)])
    pooled = ClientDatasets(
        train=[tuple(map(torch.cat, zip(whole(data, c, "train"), (x, y), strict=True)))
               for c in range(CLIENTS)],
        test=[whole(data, c, "test") for c in range(CLIENTS)], num_classes=10, batch_size=BATCH,
    )  # fmt: skip
    runs = {
        "pfedhr": _fit(PFedHR(STRENGTH, GROUPS), data, seed),
        "local": _fit(LocalOnly(), data, seed),
        "local with public data": _fit(LocalOnly(), pooled, seed),
        "teacher from public data alone": _fit(alone, data, seed),
        "fedmd": _fit(FedMD(), data, seed),
    }
    trained, fresh = _candidates(runs["pfedhr"], data, seed)
    found = {"ours": trained, "candidates with new weights": fresh}
    found |= {name: mean_accuracy(run) for name, run in runs.items()}
    found["that teacher itself"] = (
        sum(_accuracy(teacher, *whole(data, c, "test")) for c in range(CLIENTS)) / CLIENTS
    )
    for name in ARCHITECTURES:
        gain = mean_accuracy(runs["pfedhr"], name) - mean_accuracy(runs["local"], name)
        found[f"pfedhr over local, {name}"] = gain
    return found


def _fit(algorithm: Algorithm, data: Any, seed: int) -> FederatedTrainer:
    module = seeded(seed, LayeredNetworks, architectures=ARCHITECTURES, **SGD)
    return fit(module, data, algorithm, ROUNDS, seed, tune={"epochs": 0, "part": "head"},
               federation={"cohort_size": 4, "local_epochs": 5})  # fmt: skip


def _candidates(built: FederatedTrainer, data: PublicShare, seed: int) -> tuple[float, float]:
    """Return the mean accuracy of candidates of trained layers, and of re-initialised ones."""
    module, networks = built.lightning_module, []
    for client in range(CLIENTS):
        kept = built.federated_loop.client_store.get(client) or {}
        name = module.architecture_of(client)
        network = LayeredNetwork(ARCHITECTURES[name])
        network.load_state_dict({
            key.removeprefix(f"networks.{name}."): value
            for key, value in (kept or module.state_dict()).items()
            if key.startswith(f"networks.{name}.")
        })  # fmt: skip
        networks.append(network)
    x, y = whole(data, CENTRAL, "public")
    tests = [whole(data, client, "test") for client in range(CLIENTS)]
    scores: dict[bool, list[float]] = {True: [], False: []}
    for number, plan in enumerate(reassemble(networks, x, GROUPS)):
        key = Key(seed, "server", client=CLIENTS + 1, epoch=number)
        pieces = [(networks[c.network], list(networks[c.network].shapes)[c.index]) for c in plan]
        for trained in (True, False):
            candidate = seeded(seed, StitchedNetwork.of, pieces=pieces)
            if not trained:
                seeded(seed + 1, candidate.layers.apply, fn=_reset)
            fine_tune(candidate, x, y, 20, key)
            hits = [_accuracy(candidate, *test) for test in tests]
            scores[trained].append(sum(hits) / len(hits))
    trained_mean, fresh_mean = (sum(each) / len(each) for each in scores.values())
    return trained_mean, fresh_mean


def _reset(layer: nn.Module) -> None:
    if isinstance(layer, (nn.Linear, nn.Conv2d)):
        layer.reset_parameters()


@torch.no_grad()
def _accuracy(network: nn.Module, x: Tensor, y: Tensor) -> float:
    return float((network(x).argmax(1) == y).float().mean())


def demands(measured: list[dict[str, float]]) -> list[Demand]:
    """Return what trained layers are worth, and that the comparison is not one with chance."""
    mean = {name: sum(one[name] for one in measured) / len(measured) for name in measured[0]}
    fresh = mean["candidates with new weights"]
    return [
        Demand("accuracy of candidates over those with new weights", mean["ours"] - fresh, 0.04),
        Demand("candidates with new weights over chance", fresh - 0.1, 0.2),
    ]
