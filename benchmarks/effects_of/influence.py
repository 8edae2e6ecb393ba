"""Fed-Influence against leaving clients out: are they ranked as training without them ranks them?

Scikit-learn's digits. Logistic regression with 20 clients, 5 a round, 60 rounds of 5 full-gradient
steps of .5, 3 clients with random labels; a perceptron 64-16-10 with 12 clients, 4 a round, 40
rounds of 3 steps, 2 such clients. The influence is on the loss on clean test data, ``ours`` the
rank correlation of its estimate, and of baselines, with what a run without the client shows, which
meets the same cohorts and batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from effects_of import Demand
from effects_of._runs import fit, seeded
from torch.nn import functional as F

from fedlightning import ClientInfluence, FedAvg
from fedlightning.core.statistics import rank_correlation
from fedlightning.datamodules import ClientDatasets, Digits, Dirichlet
from fedlightning.models import MLP

METRIC, WHOLE = "global/loss", 10_000


class Logistic(pl.LightningModule):
    """Logistic regression."""

    def __init__(self, lr: float) -> None:
        super().__init__()
        self.lr, self.linear = lr, torch.nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits."""
        logits: torch.Tensor = self.linear(x.flatten(1))
        return logits

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        """Return the mean cross-entropy."""
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        """Return plain SGD."""
        return torch.optim.SGD(self.parameters(), lr=self.lr)


def _perceptron(lr: float) -> MLP:
    return MLP(hidden=[16], lr=lr, momentum=0.0, lr_milestones=())


CASES: dict[str, dict[str, Any]] = {
    "": {
        "make": Logistic, "clients": 20, "cohort": 5, "rounds": 60, "steps": 5, "bad": 3,
        "methods": ("exact", "truncated"),
    },
    ", perceptron": {
        "make": _perceptron, "clients": 12, "cohort": 4, "rounds": 40, "steps": 3, "bad": 2,
        "methods": ("exact", "layerwise", "truncated"),
    },
}  # fmt: skip


def _clients(seed: int, clients: int, bad: int) -> tuple[ClientDatasets, list[int]]:
    """Return the clients' data, and which of them have random labels to train on."""
    digits = Digits(num_clients=clients, partition=Dirichlet(1.0, min_samples=20), seed=seed)
    digits.setup()
    rng = np.random.default_rng(seed)
    chosen = sorted(rng.choice(clients, bad, replace=False).tolist())

    def examples(client: int, split: str) -> tuple[torch.Tensor, torch.Tensor]:
        batches = list(digits.batches(client, split))
        labels = torch.cat([y for _, y in batches])
        if split == "train" and client in chosen:
            labels = torch.from_numpy(rng.integers(0, 10, len(labels)))
        return torch.cat([x for x, _ in batches]), labels

    train = [examples(client, "train") for client in range(clients)]
    test = [examples(client, "test") for client in range(clients)]
    return ClientDatasets(train, test, num_classes=10, batch_size=WHOLE), chosen


@torch.no_grad()
def _loss(module: Any, data: ClientDatasets) -> float:
    """Return the test loss, on average over clients that have test data."""
    losses = []
    for client in range(data.num_clients):
        for x, y in data.batches(client, "test"):
            losses.append(float(F.cross_entropy(module(x), y)))
    return sum(losses) / len(losses)


def measure(seed: int) -> dict[str, float]:
    """Return rank correlations with the truth, and how well bad clients are told apart."""
    found: dict[str, float] = {}
    for suffix, case in CASES.items():
        data, bad = _clients(seed, case["clients"], case["bad"])

        def run(case: Any = case, data: Any = data, **kwargs: Any) -> Any:
            module = seeded(seed, case["make"], lr=0.5)
            federation = {
                "cohort_size": case["cohort"], "local_epochs": case["steps"],
                "leave_out": kwargs.pop("leave_out", []),
            }  # fmt: skip
            fit(module, data, FedAvg(), case["rounds"], seed, federation=federation, **kwargs)
            return module

        observers = [ClientInfluence(method=method) for method in case["methods"]]
        whole = _loss(run(callbacks=observers), data)
        clients = range(case["clients"])
        truth = [_loss(run(leave_out=[client]), data) - whole for client in clients]
        for method, observer in zip(case["methods"], observers, strict=True):
            by_client = {record.client_id: record.on(METRIC) for record in observer.results}
            estimate = [by_client[client] for client in clients]
            name = {"exact": "ours"}.get(method, method)
            found[name + suffix] = rank_correlation(estimate, truth)
            if method == "exact":
                found[f"AUROC of bad clients{suffix}"] = _auroc(estimate, bad)
                found[f"AUROC by the truth{suffix}"] = _auroc(truth, bad)
        sizes = [float(data.num_examples(client)) for client in clients]
        found[f"number of examples{suffix}"] = rank_correlation(sizes, truth)
    return found


def _auroc(values: Sequence[float], bad: Sequence[int]) -> float:
    """Return how often a bad client has a lower value than another one."""
    good = [value for client, value in enumerate(values) if client not in bad]
    pairs = [(values[client], other) for client in bad for other in good]
    return sum((one < other) + 0.5 * (one == other) for one, other in pairs) / len(pairs)


def demands(measured: Sequence[dict[str, float]]) -> list[Demand]:
    """Demand correlations in the worst seed, and that the bracket alone does worse."""

    def worst(name: str) -> float:
        return min(one[name] for one in measured)

    return [
        Demand("rank correlation with leaving out, worst seed", worst("ours"), 0.90),
        Demand("the same of the perceptron", worst("ours, perceptron"), 0.85),
        Demand(
            "AUROC of clients with random labels, worst seed", worst("AUROC of bad clients"), 0.95
        ),
        Demand(
            "shortfall of the truncated estimator from 1, least of all seeds",
            min(1 - one["truncated"] for one in measured),
            0.20,
        ),
        Demand(
            "rank correlation over the truncated estimator's, perceptron, mean",
            sum(one["ours, perceptron"] - one["truncated, perceptron"] for one in measured)
            / len(measured),
            0.10,
        ),
    ]
