"""IDS against maximum likelihood: the cross-entropy of held-out comparisons, in the long run.

A bandit of ten arms met with Zipf's frequencies (exponent 2), five clients with 60 comparisons
each, 300 rounds of ten steps. The cross-entropy is taken against the true preference probabilities
of pairs in which all arms are met alike. A seed has several draws of the bandit; what counts is the
share of draws in which IDS is better at the end.
"""

from __future__ import annotations

import torch
from effects_of import Demand
from effects_of._runs import fit
from torch.nn import functional as F

from fedlightning import IterativeDataSmoothing
from fedlightning.datamodules import ZipfPreferences
from fedlightning.models import RewardTable

ROUNDS, CLIENTS, COMPARISONS, BATCH, LR, BETA = 300, 5, 60, 6, 4.0, 0.1
DRAWS = 2
"""Draws of the bandit for a seed."""


def measure(seed: int) -> dict[str, float]:
    """Return the mean cross-entropy over a seed's draws, and how often IDS is better."""
    names = {"ours": BETA, "fedavg": 0.0}
    found: dict[str, list[float]] = {}
    for draw in range(DRAWS):
        for name, beta in names.items():
            data = ZipfPreferences(
                CLIENTS, COMPARISONS, exponent=2.0, batch_size=BATCH, seed=1000 * seed + draw
            )
            module = RewardTable(lr=LR, momentum=0.0, lr_milestones=())
            fit(module, data, IterativeDataSmoothing(beta), ROUNDS, seed)
            found.setdefault(name, []).append(_cross_entropy(module, data))
            largest = float(module.rewards.detach().abs().max())
            found.setdefault(f"{name}: largest reward", []).append(largest)
        found.setdefault("the true model", []).append(_of_the_truth(data))
    better = [a < b for a, b in zip(found["ours"], found["fedavg"], strict=True)]
    means = {name: sum(values) / DRAWS for name, values in found.items()}
    return {**means, "share better": sum(better) / DRAWS}


@torch.no_grad()
def _cross_entropy(module: RewardTable, data: ZipfPreferences) -> float:
    losses = [
        float(F.binary_cross_entropy_with_logits(module(pairs), labels))
        for client in range(CLIENTS)
        for pairs, labels in [_tests(data, client)]
    ]
    return sum(losses) / CLIENTS


def _of_the_truth(data: ZipfPreferences) -> float:
    labels = torch.cat([_tests(data, client)[1] for client in range(CLIENTS)])
    return float(F.binary_cross_entropy(labels, labels))


def _tests(data: ZipfPreferences, client: int) -> tuple[torch.Tensor, torch.Tensor]:
    batches = list(data.batches(client, "test"))
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])


def demands(measured: list[dict[str, float]]) -> list[Demand]:
    """Return how often IDS is better at the end."""
    share = sum(one["share better"] for one in measured) / len(measured)
    return [Demand("share of draws in which IDS is better at the end", share, 0.8)]
