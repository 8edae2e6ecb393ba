"""Fed-Influence: estimates against training without a client, truncation by layers, Fisher."""

from __future__ import annotations

import ast
import re
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedlightning import ClientInfluence, FedAvg
from fedlightning.datamodules import ClientDatasets
from tests.algorithms.references.reference import Reference, close
from tests.toys import loop_of, trainer


class Weighted(FedAvg):
    """FedAvg with weights of its own."""

    def __init__(self, sizes: list[float]) -> None:
        super().__init__()
        self.sizes = sizes

    def weight(self, update: Any) -> float:
        return self.sizes[update.client]


class Model(pl.LightningModule):
    """Parameter tensors by name, and plain SGD."""

    def __init__(self, lr: float, **start: Tensor) -> None:
        super().__init__()
        self.lr = lr
        for name, value in start.items():
            self.register_parameter(name, nn.Parameter(value.clone()))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Measure nothing: the estimates of parameters are what is compared."""

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class Quadratic(Model):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        return ((x @ self.w - y) ** 2).mean() / 2


class Logistic(Model):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        return F.binary_cross_entropy_with_logits(x @ self.w, y)


class Separate(Model):
    """Two layers of two weights and one; the inputs are curvatures, the labels minima."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        (curvatures,), (centres,) = batch
        w = torch.cat([self.first, self.second])
        return (curvatures * (w - centres) ** 2).sum() / 2


class Linear(Model):
    """Examples whose gradients are given by round, client (the first input), step and example."""

    gradients: dict[tuple[int, int], Tensor]

    def on_train_start(self) -> None:
        self.step = -1

    def on_train_epoch_start(self) -> None:
        self.step += 1

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        client, example = batch[0].long().T
        rows = self.gradients[self.trainer.current_epoch, int(client[0])][self.step]
        return (rows[example] @ self.w).mean()


def number(text: str, pattern: str) -> float:
    """Return the number that a setting states."""
    found = re.search(pattern, text)
    assert found is not None, f"{pattern!r} is not in {text!r}"
    return float(found[1])


def fit(
    module: Any,
    pairs: list[Any],
    cohorts: list[tuple[int, ...]],
    steps: int,
    sizes: list[float],
    without: tuple[int, ...] = (),
    **influence: Any,
) -> tuple[Any, Any]:
    """Train in rounds with given cohorts and full gradients; return module and callback."""
    observer = ClientInfluence(**influence) if influence else None
    built = trainer(
        Weighted(sizes), rounds=len(cohorts), cohort=1.0,
        federation={"local_epochs": steps, "leave_out": list(without)},
        callbacks=[observer] if observer is not None else [], limit_val_batches=0,
    )  # fmt: skip
    loop_of(built).cohort = cohorts.__getitem__
    data = ClientDatasets(train=pairs, test=pairs, batch_size=max(len(y) for _, y in pairs))
    built.fit(module, datamodule=data)
    return module, observer


def replay(reference: Reference) -> None:
    """Replay the four cases."""
    _against_training_without(reference, "quadratic", Quadratic)
    _against_training_without(reference, "logistic", Logistic)
    _layers(reference)
    _fisher(reference)


def _against_training_without(reference: Reference, case: str, kind: type[Model]) -> None:
    settings, tolerance = reference.about["settings"], reference.tolerance()
    lr = number(settings[case], r"steps? (?:of )?([\d.]+\d)")
    steps = int(number(settings["quadratic"], r"m = (\d+)"))
    cohorts = [tuple(row.nonzero().flatten().tolist()) for row in reference["in.quadratic.cohorts"]]
    sizes = [float(n) for n in reference["in.quadratic.n"]]
    pairs = list(zip(reference[f"in.{case}.x"], reference[f"in.{case}.y"], strict=True))
    start = reference[f"in.{case}.w0"]

    def run(**kwargs: Any) -> tuple[Any, Any]:
        return fit(kind(lr, w=start), pairs, cohorts, steps, sizes, **kwargs)

    final = reference[f"out.{case}.w_final"]
    out = reference.under(f"out.{case}.without")
    estimates = {name: run(method=name) for name in ("exact", "truncated")}
    for module, _ in estimates.values():
        close(module.w.detach(), final, tolerance, f"{case}: final weights")
    for key, want in out.items():
        client, _, what = key.partition(".")
        if what == "retrained_minus_full":
            got = run(without=(int(client),))[0].w.detach() - final
        else:
            _, observer = estimates["exact" if what == "epsilon" else "truncated"]
            got = observer.parameters(int(client))["w"]
        close(got, want, tolerance, f"{case}: {what} of client {client}")


def _layers(reference: Reference) -> None:
    text, tolerance = reference.about["settings"]["lwet"], reference.tolerance()
    lr, steps = number(text, r"step ([\d.]+\d)"), int(number(text, r"m = (\d+)"))
    removed = int(number(text, r"client (\d+) is removed"))
    listed = re.search(r"cohorts (\[.*\])", text)
    assert listed is not None
    cohorts = [tuple(cohort) for cohort in ast.literal_eval(f"[{listed[1]}]")]
    h, centres = reference["in.lwet.curvatures"], reference["in.lwet.centres"]
    pairs = [(h[k][None], centres[k][None]) for k in range(len(h))]
    flags, epsilons = reference["out.lwet.dropped_by_round"], reference["out.lwet.epsilon_by_round"]
    for last in range(len(cohorts)):
        zeros = {"first": torch.zeros(2).double(), "second": torch.zeros(1).double()}
        _, observer = fit(
            Separate(lr, **zeros), pairs, cohorts[: last + 1], steps, [1.0] * len(h),
            method="layerwise", clients=[removed],
        )  # fmt: skip
        got = torch.cat(list(observer.parameters(removed).values()))
        close(got, epsilons[last], tolerance, f"lwet: estimate after round {last}")
        dropped = observer.estimates.dropped.get(removed, set())
        assert [(k, -1) in dropped for k in ("first", "second")] == flags[last].tolist(), last


def _fisher(reference: Reference) -> None:
    text, tolerance = reference.about["settings"]["fisher"], reference.tolerance()
    lr = number(text, r"step ([\d.]+\d)")
    gradients, start = reference["in.fisher.gradients"], reference["in.fisher.epsilon"]
    steps, examples, size = gradients.shape
    # a round in which the other client moves by -2 epsilon and this one does not
    other = (2 * start / (steps * lr)).expand_as(gradients)
    module = Linear(lr, w=torch.zeros(size).double())
    module.gradients = {
        (0, 0): torch.zeros_like(gradients), (0, 1): other, (1, 0): gradients,
    }  # fmt: skip
    rows = torch.arange(examples)
    pairs = [
        (torch.stack([torch.full_like(rows, client), rows], dim=1).double(), torch.zeros(examples))
        for client in (0, 1)
    ]
    _, observer = fit(
        module, pairs, [(0, 1), (0,)], steps, [1.0, 1.0], method="fisher", clients=[1],
        fisher_examples=examples, truncation="never",
    )  # fmt: skip
    want = reference["out.fisher.propagated"]
    close(observer.parameters(1)["w"], want, tolerance, "fisher: propagated")
