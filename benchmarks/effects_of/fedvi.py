"""FedVI for clients that never trained: accuracy given twenty labelled images each.

Fashion-MNIST, 80 training clients with 40 images of four random classes, 40 new clients with 20
support images, which nobody has trained on; 150 rounds of 10 clients. Compared with FedAvg
as it is, and with its head fine-tuned on the same support sets. Controls: each new client gets
another one's support set; and the same with two labels exchanged at each client.
"""

from __future__ import annotations

import torch
from effects_of import Demand
from effects_of._runs import fit, mean_accuracy, seeded

from fedlightning import FedAvg, FederatedTrainer, FedVI
from fedlightning.datamodules import FashionMNIST, FewClasses
from fedlightning.models import MLP, VariationalMLP

ROUNDS, COHORT, EPOCHS, BATCH = 150, 10, 2, 20
NETWORK = {"in_features": 784, "hidden": [128], "lr_milestones": ()}
TUNE = {"epochs": 5, "part": "head", "lr": 0.1, "momentum": 0.0}
"""Five steps on the support set, which is one batch."""


def clients(seed: int, swapped: int) -> FewClasses:
    """Return 80 clients that train and 40 new ones."""
    return FewClasses(
        FashionMNIST(), num_clients=120, held_out_clients=40, classes=4, num_train=40,
        num_support=20, num_test=60, swapped=swapped, batch_size=BATCH, seed=seed,
        cache_size=240,
    )  # fmt: skip


def measure(seed: int) -> dict[str, float]:
    """Return the mean accuracy of new clients."""
    found: dict[str, float] = {}
    settings = {"cohort_size": COHORT, "local_epochs": EPOCHS}
    for swapped, name in ((0, ""), (2, ", swapped labels")):
        net = seeded(seed, VariationalMLP, lr=0.05, momentum=0.9, prior_std=0.2, **NETWORK)
        ours = fit(net, clients(seed, swapped), FedVI(tau=1e-3), ROUNDS, seed,
                   tune={"epochs": 0}, federation=settings, gradient_clip_val=5.0)  # fmt: skip
        found[f"ours{name}"] = mean_accuracy(ours, "held_out")
        found[f"another client's support{name}"] = _with_anothers_support(ours)
        found[f"divergence from the prior{name}"] = _divergence(ours)
        net = seeded(seed, MLP, lr=0.05, momentum=0.9, **NETWORK)
        plain = fit(net, clients(seed, swapped), FedAvg(), ROUNDS, seed, tune=TUNE,
                    federation=settings, gradient_clip_val=5.0)  # fmt: skip
        found[f"fedavg{name}"] = mean_accuracy(plain, "held_out")
        found[f"fedavg, fine-tuned{name}"] = mean_accuracy(plain, "held_out", after=True)
    return found


@torch.no_grad()
def _with_anothers_support(built: FederatedTrainer) -> float:
    """Return the accuracy where each new client predicts with the next one's local head."""
    data, module, (hook,) = built.datamodule, built.lightning_module, _hooks(built)
    new = data.held_out_ids.tolist()
    right = []
    for client, other in zip(new, [*new[1:], new[0]], strict=True):
        kept = hook.adapt(data.batches(other, "train"), module.eval())
        predictor = hook.predictor(kept, module)
        assert predictor is not None
        hits = [(predictor.predict(x).argmax(1) == y).float() for x, y in data.batches(
            client, "test")]  # fmt: skip
        right.append(float(torch.cat(hits).mean()))
    return sum(right) / len(right)


@torch.no_grad()
def _divergence(built: FederatedTrainer) -> float:
    """Return how far new clients' posteriors are from the prior, in the mean."""
    data, module = built.datamodule, built.lightning_module
    found = []
    for client in data.held_out_ids.tolist():
        x, y = (torch.cat(part) for part in zip(*data.batches(client, "train"), strict=True))
        found.append(float(module.posterior(x, y).kl(module.prior)))
    return sum(found) / len(found)


def _hooks(built: FederatedTrainer) -> tuple:
    return built.federated_loop.federation.algorithm.hooks


def demands(measured: list[dict[str, float]]) -> list[Demand]:
    """Return the least gains, and how much the control must lose."""
    mean = {name: sum(one[name] for one in measured) / len(measured) for name in measured[0]}
    swapped = {name: mean[f"{name}, swapped labels"] for name in ("ours", "fedavg")}
    tuned = mean["fedavg, fine-tuned"]
    lost = {
        name: mean[f"ours{name}"] - mean[f"another client's support{name}"]
        for name in ("", ", swapped labels")
    }
    return [
        Demand("accuracy over FedAvg", mean["ours"] - mean["fedavg"], 0.05),
        Demand("the same, swapped labels", swapped["ours"] - swapped["fedavg"], 0.30),
        Demand("accuracy over FedAvg with a fine-tuned head", mean["ours"] - tuned, -0.01),
        Demand("lost with another client's support", lost[""], 0.05),
        Demand("the same, swapped labels", lost[", swapped labels"], 0.30),
        Demand("divergence from the prior", mean["divergence from the prior"], 0.01),
    ]
