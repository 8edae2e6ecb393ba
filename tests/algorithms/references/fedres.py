"""FedRes: two rounds of the four schemes, with plain SGD, and with Adam as it was published."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fedlightning import Algorithm, FedRes
from fedlightning.algorithms import ClientHook
from fedlightning.datamodules import ClientDatasets
from fedlightning.models import ResidualMLP
from tests.algorithms.references.reference import Reference, close
from tests.toys import loop_of, trainer

SCHEMES = {"sgd": "sgd", "avg": "avg", "svrg": "corrected", "simul": "simultaneous"}
ORDER = {  # which of a client's two epochs has the recorded batches, in the order they were drawn
    "sgd": lambda k: [list(range(k)), None],
    "avg": lambda k: [list(range(k)), list(range(k, 2 * k))],
    "svrg": lambda k: [list(range(k)), list(range(k, 2 * k))],
    "simul": lambda k: [list(range(k)), list(range(k, 2 * k))],
}
Rounds = list[list[list[list[tuple[Tensor, Tensor]]]]]
"""Batches by round, client and epoch."""


class Recorded(ClientDatasets):
    """Clients whose batches of every round and epoch are given."""

    def __init__(self, rounds: Rounds) -> None:
        whole = [[torch.cat(part) for part in zip(*rounds[0][c][0], strict=True)] for c in range(
            len(rounds[0]))]  # fmt: skip
        super().__init__(train=[tuple(w) for w in whole], test=[tuple(w) for w in whole],
                         num_classes=int(max(y.max() for _, y in whole)) + 1)  # fmt: skip
        self.rounds = rounds

    def num_batches(self, client: int, split: str = "train", training: bool = True) -> int:
        return len(self.rounds[0][client][0])

    def batches(
        self, client: int, split: str, *, key: Any = None, device: Any = "cpu"
    ) -> Iterator[Any]:
        yield from self.rounds[key.round][client][key.epoch] if key else self.rounds[0][client][0]


def fit(module: Any, algorithm: Algorithm, rounds: Rounds) -> list[Any]:
    """Train all clients in every round; return the loops as they are after each round."""
    found = []
    for count in range(1, len(rounds) + 1):
        built = trainer(algorithm, rounds=count, cohort=1.0, check_val_every_n_epoch=99)
        one = module()
        built.fit(one, datamodule=Recorded(rounds))
        found.append(loop_of(built))
    return found


def replay(reference: Reference) -> None:
    """Replay a reference of either kind."""
    if reference.name.startswith("fedres_published"):
        _published(reference)
    else:
        _by_hand(reference)


# -- linear models, plain SGD -----------------------------------------------------------------


def _by_hand(reference: Reference) -> None:
    settings, tolerance = reference.about["settings"], reference.tolerance()
    x, y, k = reference["in.x"], reference["in.y"], settings["K"]
    features, classes = x.shape[-1], reference["out.avg.round0.shared"].shape[0]

    def module() -> ResidualMLP:
        return ResidualMLP(
            features, (), (), classes, lr=settings["lr shared"], momentum=0.0,
            private_lr=settings["lr private"], output_bias=False, lr_milestones=(),
        ).double()  # fmt: skip

    for case, scheme in SCHEMES.items():
        rounds = [
            [_epochs(reference, case, r, p, k) for p in range(x.shape[1])]
            for r in range(x.shape[0])
        ]  # fmt: skip
        for number, loop in enumerate(fit(module, FedRes(scheme), rounds)):
            state, at = loop.module.state_dict(), f"out.{case}.round{number}"
            close(state["shared.1.weight"], reference[f"{at}.shared"], tolerance, at)
            kept = [loop.client_store.get(p) for p in range(x.shape[1])]
            private = torch.stack([own["private.1.weight"] for own in kept])
            close(private, reference[f"{at}.private"], tolerance, at)
            if scheme == "corrected":
                key = "scaffold/shared.1.weight"
                control = torch.stack([own[key] for own in kept]) - loop.server.state_dict()[key]
                close(control, reference[f"{at}.control"], tolerance, f"{at}.control")
                assert control.sum(dim=0).abs().max() < 1e-12
    assert y.shape == x.shape[:-1]


def _epochs(reference: Reference, case: str, r: int, p: int, k: int) -> Any:
    """Return a client's two epochs of a round."""
    x, y = reference["in.x"][r, p], reference["in.y"][r, p]
    first, second = ORDER[case](k)
    if second is None:  # one batch of K times the size: K pieces make its mean
        size = len(reference["in.big_y"][r, p]) // k
        big = zip(
            reference["in.big_x"][r, p].split(size), reference["in.big_y"][r, p].split(size),
            strict=True,
        )  # fmt: skip
        return [[(x[b], y[b]) for b in first], list(big)]
    return [[(x[b], y[b]) for b in epoch] for epoch in (first, second)]


# -- perceptrons, Adam ------------------------------------------------------------------------


class TensorFlowAdam(torch.optim.Optimizer):
    """Adam as TensorFlow 1 has it: constants and their powers are float32 numbers.

    Epsilon stands beside the uncorrected root.
    """

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr})
        self.constants = torch.tensor([0.9, 0.999, 1e-8], dtype=torch.float32)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        first, second, epsilon = self.constants.tolist()
        for group in self.param_groups:
            lr = float(torch.tensor(group["lr"], dtype=torch.float32))
            for p in group["params"]:
                if p.grad is None:
                    continue
                own = self.state[p]
                if not own:
                    own["powers"] = torch.ones(2, dtype=torch.float32)
                    own["m"], own["v"] = torch.zeros_like(p), torch.zeros_like(p)
                own["powers"] = own["powers"].float() * self.constants[:2]
                own["m"].mul_(first).add_(p.grad, alpha=1 - first)
                own["v"].mul_(second).addcmul_(p.grad, p.grad, value=1 - second)
                powers = own["powers"].tolist()
                size = lr * (1 - powers[1]) ** 0.5 / (1 - powers[0])
                p.sub_(size * own["m"] / (own["v"].sqrt() + epsilon))


class Published(ResidualMLP):
    """The published losses: sums over the batch, divided by the number of clients."""

    clients = 1

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        return F.cross_entropy(self(x), y, reduction="sum") / self.clients

    def configure_optimizers(self) -> Any:
        return TensorFlowAdam(self.optimizer_groups(list(self.parameters())), self.lr)


class StartApart(ClientHook):
    """Clients start from weights of their own, the shared ones in the first round only."""

    def __init__(self, starts: Any) -> None:
        self.starts = starts

    def on_update_start(self, context: Any) -> None:
        if context.round == 0:
            context.set_weights(self.starts[context.client])


class WholeBatch(ClientHook):
    """Undoes the mean over the pieces of FedResSGD's one large batch: its loss is their sum."""

    def __init__(self, pieces: int) -> None:
        self.pieces = pieces

    def on_loss(self, context: Any, batch: Any, loss: Tensor) -> Tensor:
        shared = any(p.requires_grad for p in context.module.shared.parameters())
        return loss * self.pieces if shared else loss


def _published(reference: Reference) -> None:
    settings = reference.about["settings"]
    tolerance, k = reference.tolerance("values with float32 constants"), settings["K"]
    for case, scheme in SCHEMES.items():
        drawn = sorted({n.split(".")[0] for n in reference.under(f"in.{case}.batch")}, key=int)
        batches = [(reference[f"in.{case}.batch{j}.x"], reference[f"in.{case}.batch{j}.y"])
                   for j in drawn]  # fmt: skip
        count = batches[0][0].shape[0]
        per_round = k + 1 if case == "sgd" else 2 * k
        rounds = [
            [_drawn(batches[start : start + per_round], case, p, k) for p in range(count)]
            for start in range(0, len(batches), per_round)
        ]
        starts = [_weights(reference, f"in.{case}.client{p}") for p in range(count)]
        hidden, classes = starts[0]["shared.3.weight"].shape[::-1]
        features = starts[0]["shared.1.weight"].shape[1]

        def module(hidden=hidden, classes=classes, features=features, count=count) -> Published:
            made = Published(
                features, (hidden,), (hidden,), classes, lr=settings["Adam, lr of shared"],
                private_lr=settings["Adam, lr of private"], output_bias=False,
            )  # fmt: skip
            made.clients = count
            return made.double()

        hooks: list[ClientHook] = [StartApart(starts)]
        hooks += [WholeBatch(k)] if case == "sgd" else []
        algorithm = FedRes(scheme, keep_optimizer=True) + Algorithm(local=hooks)
        for number, loop in enumerate(fit(module, algorithm, rounds), start=1):
            at, state = f"out.{case}.round{number}", loop.module.state_dict()
            for key, want in _half(reference, f"{at}.shared", "shared").items():
                close(state[key], want, tolerance, f"{at} {key}")
            for p in range(count):
                own = loop.client_store.get(p)
                for key, want in _half(reference, f"{at}.client{p}.private", "private").items():
                    close(own[key], want, tolerance, f"{at} client {p} {key}")


def _drawn(batches: Any, case: str, p: int, k: int) -> Any:
    """Return a client's two epochs of a round, of the batches drawn in it."""
    own = [(x[p], y[p]) for x, y in batches]
    if case == "sgd":
        x, y = own[k]
        size = len(y) // k
        return [own[:k], list(zip(x.split(size), y.split(size), strict=True))]
    return [own[:k], own[k:]]


def _weights(reference: Reference, name: str) -> dict[str, Tensor]:
    return {
        **_half(reference, f"{name}.shared", "shared"),
        **_half(reference, f"{name}.private", "private"),
    }


def _half(reference: Reference, name: str, part: str) -> dict[str, Tensor]:
    """Return one model's weights: the last row of the hidden layer's inputs is its bias."""
    hidden, output = reference[f"{name}.hidden"].T, reference[f"{name}.output"].T
    return {
        f"{part}.1.weight": hidden[:, :-1].contiguous(),
        f"{part}.1.bias": hidden[:, -1].contiguous(),
        f"{part}.3.weight": output.contiguous(),
    }
