"""What an update gives away: pictures that are rebuilt from the shared part, and what noise does.

    python benchmarks/leakage.py --seeds 0 1 2

A client takes one step on a few images of digits. Somebody sees the shared part before and after,
knows the network, the learning rate and the labels, and looks for images whose gradient is the same
(Geiping, Bauermeister, Dröge, Moeller. Inverting Gradients: How easy is it to break privacy in
federated learning? NeurIPS 2020. https://arxiv.org/abs/2003.14053). FedAvg shares everything,
FedBABU the body; its head is the same random one at all clients, so whoever is looking knows it,
too. Privacy clips the update to C and adds noise of zC, as in a round in which all other clients'
updates are known: the worst case of what `ClientDP` promises against, and for a batch of one what
`PrivateSGD` does at the client.

The number is the correlation of each rebuilt image with the nearest true one: 1 is the image, and
the row "chance" is what the search finds when it has nothing but noise to look at.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from statistics import mean, stdev

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn import functional as F

STEPS = 300


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--noise", type=float, nargs="+", default=[0.01, 0.1, 1.0])
    parser.add_argument("--max-norm", type=float, default=1.0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print("| images in the batch | update | FedAvg | FedBABU |")
    print("|---|---|---|---|")
    rows = [("as it is", None), *((f"C = {args.max_norm:g}, z = {z:g}", z) for z in args.noise),
            ("chance", float("inf"))]  # fmt: skip
    for size in args.batch:
        for label, z in rows:
            cells = []
            for shared in ("full", "body"):
                found = [attacked(shared, size, z, args.max_norm, seed) for seed in args.seeds]
                spread = f" ± {stdev(found):.2f}" if len(found) > 1 else ""
                cells.append(f"{mean(found):.2f}{spread}")
            print(f"| {size} | {label} | {' | '.join(cells)} |", flush=True)


def attacked(shared: str, size: int, z: float | None, max_norm: float, seed: int) -> float:
    """Return the mean correlation of rebuilt images with true ones.

    Args:
        shared: ``full`` or ``body``.
        size: How many images the client's step was made of.
        z: The noise multiplier; ``None`` for the bare update, infinite for noise alone.
        max_norm: What the update is clipped to.
        seed: Of network, images, noise and search.
    """
    from fedlightning.datamodules import Digits
    from fedlightning.models import MLP
    from fedlightning.privacy import KeyedNoise

    torch.manual_seed(seed)
    data = Digits(num_clients=10, batch_size=100, seed=seed)
    data.setup()
    images, labels = next(data.batches(seed % 10, "train"))
    images, labels = images[:size], labels[:size]
    network = MLP(in_features=64, hidden=[64], num_classes=10)
    seen = [p for k, p in network.named_parameters() if shared == "full" or k.startswith("body")]
    update = _gradient(network, seen, images, labels, graph=False)
    if z is not None:
        from fedlightning.core.seeding import Key

        noise = KeyedNoise(Key(seed, "noise"))
        norm = torch.sqrt(sum(g.square().sum() for g in update))
        share = min(1.0, max_norm / float(norm)) if z < float("inf") else 0.0
        std = (z if z < float("inf") else 1.0) * max_norm
        update = [share * g + std * noise.normal(g.shape).to(g) for g in update]
    rebuilt = _inverted(network, seen, update, labels, images.shape)
    return _likeness(rebuilt, images)


def _gradient(
    network: nn.Module, seen: Sequence[nn.Parameter], images: Tensor, labels: Tensor, graph: bool
) -> list[Tensor]:
    loss = F.cross_entropy(network(images), labels)
    return list(torch.autograd.grad(loss, list(seen), create_graph=graph))


def _inverted(
    network: nn.Module,
    seen: Sequence[nn.Parameter],
    update: Sequence[Tensor],
    labels: Tensor,
    shape: torch.Size,
) -> Tensor:
    """Return the images whose gradient points most nearly where the update does."""
    guess = (0.1 * torch.randn(shape) + 0.5).requires_grad_()
    optimizer = torch.optim.Adam([guess], lr=0.05)
    target = torch.cat([g.reshape(-1) for g in update])
    for _ in range(STEPS):
        optimizer.zero_grad()
        found = _gradient(network, seen, guess, labels, graph=True)
        flat = torch.cat([g.reshape(-1) for g in found])
        (1 - F.cosine_similarity(flat, target, dim=0)).backward()
        optimizer.step()
        with torch.no_grad():
            guess.clamp_(0, 1)
    return guess.detach()


def _likeness(rebuilt: Tensor, images: Tensor) -> float:
    """Return the mean correlation under the best assignment of rebuilt images to true ones."""
    one, other = (F.normalize(t.flatten(1) - t.flatten(1).mean(1, keepdim=True))
                  for t in (rebuilt, images))  # fmt: skip
    correlations = (one @ other.T).numpy()
    rows, columns = linear_sum_assignment(-correlations)
    return float(correlations[rows, columns].mean())


if __name__ == "__main__":
    sys.exit(main())
