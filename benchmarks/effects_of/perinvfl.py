"""PerInvFL: the shared model stands a cue that turns around, and FedAvg's does not.

Fashion-MNIST at 14 x 14 in two colours, label = class < 5 with a quarter of the labels wrong. The
colour disagrees with the label in .05, .15, .20 and .25 of the examples of four clients, and in .9
of the view ``ood``; 16,000 images. One step of the whole of a client's data a round, Adam at the
server, 250 rounds, a = 1, and 1e4 from round 100 on. ``ours`` and ``fedavg`` are accuracies in the
view, also where two classes of each client have the other label. Then, without such flips, clients
take 60 personal steps of Adam with 1e-4 for several strengths.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from effects_of import Demand
from effects_of._images import fashion_mnist
from effects_of._runs import fit, seeded
from torch import Tensor
from torch.nn import functional as F

from fedlightning import FedAdam, FedAvg, LocalOnly, PerInvFL
from fedlightning.algorithms import Composite
from fedlightning.algorithms.perinvfl import invariance_penalty
from fedlightning.datamodules import ColoredImages
from fedlightning.models import MLP

ROUNDS, ANNEAL, WEIGHT, STRENGTHS, WIDTH = 250, 100, 1e4, (0.0, 1.0, 5.0), 32


class Colored(ColoredImages):
    """Fashion-MNIST at half its size."""

    def load_images(self) -> tuple[np.ndarray, np.ndarray]:
        """Take 20,000 images: 4,000 of each client to train on, 1,000 to test on."""
        images, labels, _, _ = fashion_mnist(self.seed or 0, 20_000, 1)
        small = F.avg_pool2d(torch.from_numpy(images[:, None]), 2)[:, 0].numpy()
        return small, 9 - labels  # so that the label is 1 for classes below 5


class Network(MLP):
    """A perceptron; SGD at clients, for which the mean change is the mean gradient, or Adam."""

    personal = False

    def configure_optimizers(self) -> Any:
        """Return the optimizer of the phase."""
        if self.personal:
            return torch.optim.Adam(self.parameters(), lr=5e-4)
        return torch.optim.SGD(self.parameters(), lr=0.1)


def _data(seed: int, flipped: int) -> Colored:
    data = Colored(
        test_fraction=0.2, flipped_classes=flipped, batch_size=4_000, seed=seed, num_train=4_000,
        num_test=1_000,
    )  # fmt: skip
    data.setup()
    return data


def _examples(data: Colored, client: int, split: str) -> tuple[Tensor, Tensor]:
    parts = list(data.batches(client, split))
    return torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])


@torch.no_grad()
def _accuracy(module: Any, data: Colored, split: str, states: Any = None) -> float:
    """Return the mean accuracy over clients, each with its own state if there are some."""
    found = []
    for client in range(data.num_clients):
        x, y = _examples(data, client, split)
        logits = torch.func.functional_call(module, states[client] if states else {}, (x,))
        found.append(float((logits.argmax(dim=1) == y).float().mean()))
    return sum(found) / len(found)


def _penalty(module: Any, data: Colored) -> float:
    """Return the mean of J over clients' training data."""
    found = []
    for client in range(data.num_clients):
        x, y = _examples(data, client, "train")
        scale = torch.ones((), requires_grad=True)
        found.append(float(invariance_penalty(F.cross_entropy(module(x) * scale, y), scale)))
    return sum(found) / len(found)


def _shared(seed: int, data: Colored, ours: bool) -> tuple[Any, Any]:
    """Return the trained module and the trainer."""
    module = seeded(seed, Network, in_features=2 * 14 * 14, hidden=[WIDTH], num_classes=2)
    server = FedAdam(lr=1e-3, tau=1e-8)
    algorithm = Composite([_ours() if ours else FedAvg(), server])
    return module, fit(module, data, algorithm, ROUNDS, seed)


def _ours() -> PerInvFL:
    return PerInvFL(inner_steps=0, penalty=WEIGHT, anneal_round=ANNEAL)


def _helpers(seed: int, data: Colored) -> dict[int, dict[str, Tensor]]:
    """Return what clients keep of plain local training: the helpers, which push."""
    module = seeded(seed, Network, in_features=2 * 14 * 14, hidden=[WIDTH], num_classes=2)
    module.personal = True
    store = fit(module, data, LocalOnly(), 60, seed).federated_loop.client_store
    clients = range(data.num_clients)
    return {c: {f"perinvfl:helper/{k}": v for k, v in store.get(c).items()} for c in clients}


def _personal(
    module: Any, built: Any, data: Colored, helpers: Any, strength: float
) -> dict[str, float]:
    """Return accuracies of personal models after 60 steps from the shared one."""
    loop, start = built.federated_loop, {k: v.clone() for k, v in module.state_dict().items()}
    (hook,) = [h for h in built.federation.algorithm.hooks if hasattr(h, "inner_steps")]
    hook.strength, hook.inner_steps, module.personal = strength, 60, True
    loop.client_store.update(helpers)
    built.fit_loop.max_epochs += 1
    built.fit(module, datamodule=data)
    module.load_state_dict(start)
    states = [
        {k.removeprefix("perinvfl/"): v for k, v in loop.client_store.get(c).items()
         if k.startswith("perinvfl/")}
        for c in range(data.num_clients)
    ]  # fmt: skip
    return {split: _accuracy(module, data, split, states) for split in ("ood", "test")}


def measure(seed: int) -> dict[str, float]:
    """Return accuracies and penalties of both, with and without personal concepts."""
    found: dict[str, float] = {}
    for flipped in (0, 2):
        data, suffix = _data(seed, flipped), f", {flipped} classes flipped" if flipped else ""
        helpers = {} if flipped else _helpers(seed, data)
        for name in ("ours", "fedavg"):
            module, built = _shared(seed, data, name == "ours")
            found[f"{name}{suffix}"] = _accuracy(module, data, "ood")
            found[f"{name} at home{suffix}"] = _accuracy(module, data, "test")
            found[f"{name} penalty{suffix}"] = _penalty(module, data)
            for strength in STRENGTHS if name == "ours" and not flipped else ():
                scores = _personal(module, built, data, helpers, strength)
                for split, where in (("ood", "ood"), ("test", "at home")):
                    found[f"personal {where}, strength {strength:g}"] = scores[split]
    return found


def demands(measured: Sequence[dict[str, float]]) -> list[Demand]:
    """Demand the shared model's accuracy in the view, a small penalty, a FedAvg that has learnt."""
    flipped = ", 2 classes flipped"
    return [
        Demand(
            "accuracy in the view ood over FedAvg's, worst seed",
            min(one["ours"] - one["fedavg"] for one in measured),
            0.25,
        ),
        Demand(
            "the same with 2 classes flipped per client",
            min(one[f"ours{flipped}"] - one[f"fedavg{flipped}"] for one in measured),
            0.25,
        ),
        Demand(
            "FedAvg's invariance penalty over ours, worst seed",
            min(one["fedavg penalty"] / one["ours penalty"] for one in measured),
            10.0,
        ),
        Demand(
            "accuracy of FedAvg at home, worst seed (0.5 is chance)",
            min(one["fedavg at home"] for one in measured),
            0.7,
        ),
    ]
