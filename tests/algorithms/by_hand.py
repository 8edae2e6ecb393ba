"""The parts that all references share, in plain torch: a network as a function, SGD, the mean.

Nothing here comes from the package but the order of the data. Everything is in float64, so that a
reference and the package differ by rounding of about 1e-15, and the bounds can be tight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fedlightning.core.seeding import Key
from fedlightning.datamodules import ClientDatasets
from tests.toys import examples, loop_of, net, state, trainer

Weights = dict[str, Tensor]
Batch = tuple[Tensor, Tensor]

SIZES = (8, 6, 7, 6)  # of the clients; batches of four, so none has a single example
COHORTS = [(0, 1, 3), (3, 2, 0), (1, 0, 2)]  # of the rounds
BODY, HEAD = ["body.0.weight", "body.0.bias"], ["head.weight", "head.bias"]
LR, MOMENTUM, EPOCHS, BATCH = 0.1, 0.5, 2, 4


def clients() -> ClientDatasets:
    """Return the clients' data in float64."""
    pairs = [examples(n, seed) for seed, n in enumerate(SIZES)]
    tests = [examples(4, 100 + seed) for seed in range(len(SIZES))]
    made = ClientDatasets(
        train=[(x.double(), y) for x, y in pairs],
        test=[(x.double(), y) for x, y in tests],
        num_classes=3,
        batch_size=BATCH,
    )
    made.setup()
    return made


def start(**kwargs: Any) -> Any:
    """Return the module of all tests here."""
    return net(**{"lr": LR, "momentum": MOMENTUM, "lr_milestones": (), **kwargs}).double()


def trained(algorithm: Any, module: Any = None, federation: Any = None, **kwargs: Any) -> Any:
    """Fit three rounds with :data:`COHORTS` and return the loop; the module holds the result."""
    settings = {"local_epochs": EPOCHS, **(federation or {})}
    built = trainer(algorithm, cohort=3, federation=settings, **{"rounds": 3, **kwargs})
    loop_of(built).cohort = COHORTS.__getitem__
    built.fit(module if module is not None else start(), datamodule=clients())
    return loop_of(built)


def batches(client: int, round_: int, purpose: str = "fit", epochs: Any = EPOCHS) -> list[Batch]:
    """Return the batches of a client's turn, in order; ``epochs`` is a number, or which ones."""
    chosen = range(epochs) if isinstance(epochs, int) else epochs
    made = clients()
    return [
        batch
        for epoch in chosen
        for batch in made.batches(client, "train", key=Key(0, purpose, round_, client, epoch))
    ]


def logits(w: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """Return the outputs of the toy network with weights ``w``."""
    return F.linear(features(w, x), w["head.weight"], w["head.bias"])


def features(w: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """Return what the toy network's head gets."""
    z = F.linear(x, w["body.0.weight"], w["body.0.bias"])
    if "body.1.weight" in w:  # batch statistics; those that are kept are a side effect
        w["body.1.num_batches_tracked"].add_(1)
        z = F.batch_norm(
            z, w["body.1.running_mean"], w["body.1.running_var"], w["body.1.weight"],
            w["body.1.bias"], training=True,
        )  # fmt: skip
    return F.relu(z)


def loss(w: Mapping[str, Tensor], batch: Batch) -> Tensor:
    """Return the mean cross-entropy."""
    return F.cross_entropy(logits(w, batch[0]), batch[1])


def gradient(
    w: Weights, batch: Batch, keys: Iterable[str] | None = None, of: Callable[..., Tensor] = loss
) -> Weights:
    """Return the gradient of a function of ``w`` and a batch, with respect to some weights."""
    leaves = {k: w[k].clone().requires_grad_() for k in keys or parameters(w)}
    slopes = torch.autograd.grad(of({**w, **leaves}, batch), list(leaves.values()))
    return dict(zip(leaves, slopes, strict=True))


def parameters(w: Weights) -> list[str]:
    """Return the keys that are no statistics."""
    return [k for k in w if "running" not in k and "num_batches" not in k]


class Sgd:
    """SGD with momentum, as torch defines it; changes ``w`` in place."""

    def __init__(self, w: Weights, lr: float = LR, momentum: float = MOMENTUM) -> None:
        self.w, self.lr, self.momentum = w, lr, momentum
        self.v: Weights = {}

    def step(self, g: Weights) -> None:
        """Move along the gradient."""
        for k, slope in g.items():
            self.v[k] = self.momentum * self.v[k] + slope if k in self.v else slope.clone()
            self.w[k] -= self.lr * self.v[k]


def copy(w: Weights) -> Weights:
    """Return copies."""
    return {k: v.clone() for k, v in w.items()}


def mean(ws: Sequence[Weights], weights: Sequence[float], keys: Iterable[str]) -> Weights:
    """Return the weighted mean of some keys."""
    total = sum(weights)
    return {k: sum(a * w[k] for a, w in zip(weights, ws, strict=True)) / total for k in keys}


def sizes(cohort: Iterable[int]) -> list[float]:
    """Return the numbers of examples of clients."""
    return [float(SIZES[client]) for client in cohort]


def assert_close(
    got: Mapping[str, Tensor], want: Mapping[str, Tensor], bound: float = 1e-9
) -> None:
    """Compare two states of the same keys."""
    assert got.keys() == want.keys()
    for k, value in want.items():
        assert torch.allclose(got[k], value, rtol=bound, atol=bound), (k, got[k], value)


def global_and_own(loop: Any, client: int) -> Weights:
    """Return a client's whole model: the global one, and where it has its own, that."""
    return {**state(loop.module), **loop.personal_model(client)}
