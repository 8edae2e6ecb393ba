"""FedImpro: losses with given features, class sums, merged moments, dissimilarity of gradients."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn

from fedlightning import Algorithm, FederatedModule, FedImpro
from fedlightning.algorithms import Aggregation, SharedFeatures
from fedlightning.core.class_moments import ClassSums
from tests.algorithms.one_client import update_of
from tests.algorithms.references.reference import Reference, close

FORMS = {"default": "joint", "gradual2half": "sum", "gradual": "mixture"}


class Given(SharedFeatures):
    """Does not draw features: they are given, and the losses are taken down."""

    def __init__(self, form: Any, weight: float, features: Tensor, labels: Tensor) -> None:
        super().__init__("body", form, "batch", weight, None, 0.0, 0.0)
        self.features, self.labels, self.losses = features, labels, []

    def fake_labels(self, labels: Tensor, known: Tensor) -> Tensor:
        return self.labels

    def draw(self, mean: Tensor, std: Tensor, labels: Tensor) -> Tensor:
        return self.features

    def on_loss(self, context: Any, batch: Any, loss: Tensor) -> Tensor:
        joined = super().on_loss(context, batch, loss)
        self.losses.append(joined.detach())
        return joined


class TwoLayers(FederatedModule):
    """A low and a high part, with given weights; a step of plain SGD shows the gradients."""

    def __init__(self, low: nn.Module, high: nn.Linear) -> None:
        super().__init__(lr=1.0, momentum=0.0, lr_milestones=())
        self.body, self.head = low, high


def linear(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    """Return a linear layer with these weights."""
    made = nn.Linear(*weight.shape[::-1], bias=bias is not None, dtype=weight.dtype)
    made.load_state_dict({"weight": weight} | ({} if bias is None else {"bias": bias}))
    return made


def gradients(
    module: FederatedModule, hook: Given, x: Tensor, y: Tensor
) -> tuple[dict[str, Tensor], Tensor]:
    """Return the gradients of one step of a client, and the loss."""
    shape = hook.features.shape[1]
    classes = module.head.out_features
    moments = {
        "fedimpro/mean": torch.zeros(classes, shape, dtype=x.dtype),
        "fedimpro/variance": torch.ones(classes, shape, dtype=x.dtype),
        "fedimpro/known": torch.ones(classes, dtype=torch.long),
    }
    before = {key: value.clone() for key, value in module.state_dict().items()}
    update, _ = update_of(module, Algorithm(local=[hook]), [(x, y)], extras=moments)
    (loss,) = hook.losses
    return {key: before[key] - value for key, value in update.state.items()}, loss


def replay(reference: Reference) -> None:
    """Replay a reference by its kind."""
    kind = reference.name.partition("_")[2]
    {
        "loss": _loss, "dissimilarity": _dissimilarity,
        "client_moments": _client_moments, "server_moments": _server_moments,
    }[kind](reference)  # fmt: skip


def _loss(reference: Reference) -> None:
    for case, said in reference.about["cases"].items():
        form = FORMS[case.partition("_round")[0]]
        found = re.search(r"(?:weight|w =) (\d+(?:\.\d+)?)", said)
        weight = float(found[1]) if found else 1.0
        hook = Given(form, weight, reference["in.fake_features"], reference["in.fake_labels"])
        low = nn.Sequential(linear(reference["in.low.weight"], reference["in.low.bias"]), nn.ReLU())
        module = TwoLayers(low, linear(reference["in.high.weight"], reference["in.high.bias"]))
        found_gradients, loss = gradients(module, hook, reference["in.x"], reference["in.y"])
        close(loss, reference[f"out.{case}.loss"], reference.tolerance(), case)
        for key, name in (("body.0", "low"), ("head", "high")):
            for kind in ("weight", "bias"):
                want = reference[f"out.{case}.grad.{name}.{kind}"]
                got = found_gradients[f"{key}.{kind}"]
                close(got, want, reference.tolerance("gradients"), f"{case} {name}.{kind}")


def _dissimilarity(reference: Reference) -> None:
    features, labels = reference["in.features"], reference["in.labels"]

    def spread(form: Any, weight: float) -> Tensor:
        found = []
        for x, y in zip(features, labels, strict=True):
            hook = Given(form, weight, reference["in.fake_features"], reference["in.fake_labels"])
            module = TwoLayers(nn.Identity(), linear(reference["in.weight"]))
            found.append(gradients(module, hook, x, y)[0]["head.weight"])
        stacked = torch.stack(found)
        return (stacked - stacked.mean(dim=0)).square().flatten(1).sum(dim=1).mean()

    bound = reference.tolerance("ratios")
    real, joint, added = spread("joint", 0.0), spread("joint", 1.0), spread("sum", 1.0)
    close(real, reference["out.real_only"], bound, "real_only")
    close(joint, reference["out.mean_over_all"], bound, "mean_over_all")
    close(added, reference["out.sum_of_means"], bound, "sum_of_means")
    close(joint / real, reference["out.ratio_mean_over_all"], bound, "ratio of the joint mean")
    close(added / real, reference["out.ratio_sum_of_means"], bound, "ratio of the sum")


def _client_moments(reference: Reference) -> None:
    sums = ClassSums.zeros(*reference["in.mean"].shape)
    number = 0
    while f"in.features{number}" in reference.tensors:
        sums.add(reference[f"in.features{number}"], reference[f"in.labels{number}"])
        number += 1
    for name, got in (
        ("count", sums.count), ("sum", sums.total), ("sum_of_squares", sums.squares),
    ):  # fmt: skip
        close(got, reference[f"out.statistics.{name}"], reference.tolerance(), name)


def _server_moments(reference: Reference) -> None:
    total: dict[str, Any] = {"count": 0, "total": 0, "squares": 0}
    client = 0
    while f"in.client{client}.mean" in reference.tensors:
        count = reference[f"in.client{client}.class_counts"].double()
        mean, std = reference[f"in.client{client}.mean"], reference[f"in.client{client}.std"]
        total["count"] = total["count"] + count
        total["total"] = total["total"] + count[:, None] * mean
        total["squares"] = total["squares"] + count[:, None] * (std**2 + mean**2)
        client += 1
    extras = {f"fedimpro_sums/{name}": value for name, value in total.items()}
    (hook,) = FedImpro(momentum=0.0).local
    merged = hook.on_aggregate(Aggregation({}, extras))
    bound = reference.tolerance()
    close(merged["fedimpro/mean"], reference["out.by_count.mean"], bound, "mean")
    close(merged["fedimpro/variance"].sqrt(), reference["out.by_count.std"], bound, "std")
