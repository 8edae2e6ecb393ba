"""PerInvFL: the penalty, the contrastive term, and a client's turn before and after annealing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedlightning import FederatedModule, PerInvFL
from fedlightning.algorithms.perinvfl import contrast, invariance_penalty
from tests.algorithms.one_client import update_of
from tests.algorithms.references.reference import Reference, close

PLACES = {"extractor": "body.0", "classifier": "head"}


class Adams(FederatedModule):
    """An extractor tanh(Linear), a linear classifier, Adam."""

    def __init__(self, start: dict[str, Tensor], lr: float) -> None:
        super().__init__(lr=lr, lr_milestones=())
        hidden, features = start["body.0.weight"].shape
        self.body = nn.Sequential(nn.Linear(features, hidden), nn.Tanh())
        self.head = nn.Linear(hidden, len(start["head.bias"]))
        self.double().load_state_dict(start)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


def model(reference: Reference, name: str) -> dict[str, Tensor]:
    """Return a model of a reference by the keys of :class:`Adams`."""
    return {
        f"{place}.{kind}": reference[f"{name}.{part}.{kind}"]
        for part, place in PLACES.items()
        for kind in ("weight", "bias")
    }


def penalty(logits: Tensor, y: Tensor) -> Tensor:
    """Return the penalty of a batch."""
    scale = torch.ones((), dtype=logits.dtype, requires_grad=True)
    return invariance_penalty(F.cross_entropy(scale * logits, y), scale)


def replay(reference: Reference) -> None:
    """Replay a reference by its kind."""
    kind = reference.name.partition("_")[2]
    if kind == "by_hand":
        got = penalty(reference["in.logits"], reference["in.y"]).detach()
        close(got, reference["out.penalty"], reference.tolerance(), "penalty")
    elif kind == "terms":
        _terms(reference)
    else:
        _turn(reference)


def _terms(reference: Reference) -> None:
    values, gradients = reference.tolerance(), reference.tolerance("gradients")
    logits = reference["in.logits"].clone().requires_grad_()
    found = penalty(logits, reference["in.y"])
    close(found.detach(), reference["out.penalty"], values, "penalty")
    (slope,) = torch.autograd.grad(found, logits)
    close(slope, reference["out.penalty_grad_logits"], gradients, "gradient of the penalty")
    near, far = reference["in.z_positive"], reference["in.z_negative"]
    for start, name in ((reference["in.z"], "contrastive"), (near, "contrastive_at_positive")):
        z = start.clone().requires_grad_()
        term = contrast(z, near, far)
        close(term.detach(), reference[f"out.{name}"], values, name)
        (slope,) = torch.autograd.grad(term, z)
        close(slope, reference[f"out.{name}_grad_z"], gradients, f"gradient of {name}")


def _turn(reference: Reference) -> None:
    said = reference.about["settings"]
    weight = said["invariance penalty weight in force"]
    late = said["round"] >= said["anneal round"]
    algorithm = PerInvFL(
        strength=said["lambda"],
        push=said["weight of the negative"],
        l2=said["l2"],
        inner_steps=said["K"],
        personal_lr=said["personal lr (Adam)"],
        anneal_round=said["anneal round"],
        **{"penalty" if late else "early_penalty": weight},
    )
    module = Adams(model(reference, "in.shared"), said["lr of shared and helper (Adam)"])
    helper = {
        f"perinvfl:helper/{key}": value for key, value in model(reference, "in.helper").items()
    }
    batches = list(zip(reference["in.x"], reference["in.y"], strict=True))
    update, kept = update_of(module, algorithm, batches, kept=helper, version=said["round"])
    assert update.steps == len(batches)
    for name, state, start in (
        ("shared", update.state, ""), ("helper", kept, "perinvfl:helper/"),
        ("personal", kept, "perinvfl/"),
    ):  # fmt: skip
        for key, want in model(reference, f"out.separate.{name}").items():
            close(state[start + key], want, reference.tolerance(), f"{name} {key}")
