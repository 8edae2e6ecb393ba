"""FedRes under concept shift: clients permute the labels of three classes and have few examples.

Scikit-learn's digits, 40 clients of 36 examples, each with three classes of its own whose labels
change places; the shared network is a perceptron 64-32-10, the private one is linear. Compared with
the shared network under FedAvg, and with local training of both networks (equal capacity, as many
passes, the better of the two learning rates).
"""

from __future__ import annotations

from effects_of import Demand
from effects_of._runs import fit, mean_accuracy, seeded

from fedlightning import FedAvg, FedRes, LocalOnly
from fedlightning.datamodules import Digits, PermutedLabels
from fedlightning.models import MLP, ResidualMLP

ROUNDS, CLIENTS, BATCH = 150, 40, 20
SGD = {"momentum": 0.0, "lr_milestones": ()}


def measure(seed: int) -> dict[str, float]:
    """Return the mean accuracy of the clients' own models."""
    runs = {
        "ours": (FedRes(), seeded(seed, ResidualMLP, lr=0.5, private_lr=0.1, **SGD), 1, 1),
        "fedavg": (FedAvg(weights="uniform"), seeded(seed, MLP, hidden=[32], lr=0.3, **SGD), 2, 10),
        "local": (LocalOnly(), seeded(seed, ResidualMLP, lr=0.1, **SGD), 2, 1),
    }
    found = {}
    for name, (algorithm, module, epochs, at_once) in runs.items():
        digits = Digits(test_fraction=0.2, num_clients=CLIENTS, batch_size=BATCH, seed=seed)
        built = fit(
            module, PermutedLabels(digits, classes=3), algorithm, ROUNDS, seed,
            tune={"epochs": 0, "part": "full"},
            federation={"local_epochs": epochs, "clients_per_kernel": at_once},
        )  # fmt: skip
        found[name] = mean_accuracy(built)
    return found


def demands(measured: list[dict[str, float]]) -> list[Demand]:
    """Return the least gains over both baselines."""
    mean = {name: sum(one[name] for one in measured) / len(measured) for name in measured[0]}
    return [
        Demand("accuracy over FedAvg", mean["ours"] - mean["fedavg"], 0.10),
        Demand("accuracy over local training of both networks", mean["ours"] - mean["local"], 0.01),
    ]
