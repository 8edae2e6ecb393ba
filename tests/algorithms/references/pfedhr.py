"""pFedHR: alignment and distances of layers, rules, a stitched network, matching, distillation."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedlightning.algorithms import Teacher
from fedlightning.algorithms.reassembly import Cut, rules
from fedlightning.core.similarity import layer_distances, linear_cka, mean_cosine
from fedlightning.models import LayeredNetwork, LayeredNetworks, StitchedNetwork
from tests.algorithms.references.reference import Reference, close


def replay(reference: Reference) -> None:
    """Replay a reference, by the rest of its name."""
    _REPLAYS[reference.name.removeprefix("pfedhr_")](reference)


def network(state: dict[str, Tensor], in_shape: Any) -> LayeredNetwork:
    """Return the network of a state: convolutions without padding, then linear layers."""
    weights = [(key.split(".")[0], w) for key, w in state.items() if key.endswith("weight")]
    weights.sort(key=lambda pair: (pair[0].startswith("fc"), int(re.sub(r"\D", "", pair[0]))))
    layers = [f"{name.rstrip('0123456789')}{len(w)}" for name, w in weights[:-1]]
    built = LayeredNetwork(layers, in_shape, len(weights[-1][1]), padding=0)
    built.to(weights[0][1].dtype).load_state_dict(state)
    return built


def _cka(reference: Reference) -> None:
    tolerance = reference.tolerance()
    x, y, x2, y2 = (reference[f"in.{name}"] for name in ("x", "y", "x2", "y2"))
    constant = torch.cat([x, torch.ones(len(x), 3, dtype=x.dtype)], dim=1)
    for name, one, other in (
        ("cka_xy", x, y), ("cka_xx", x, x), ("cka_x_x2", x, x2),
        ("cka_rotated_scaled", 3.0 * x @ reference["in.rotation"], y),
        ("cka_with_constant_columns", constant, y),
    ):  # fmt: skip
        close(linear_cka(one, other), reference[f"out.{name}"], tolerance, name)
    distance = layer_distances([x, y], [x2, y2])[0, 1]
    close(distance, reference["out.distance_pair"], tolerance, "distance")
    close(1 / distance, reference["out.similarity_pair"], tolerance, "similarity")


def _layers(reference: Reference) -> None:
    images = reference["in.images"]
    networks = [network(reference.under(f"in.net{i}."), images.shape[1:]) for i in range(2)]
    traced = [layer for each in networks for layer in each.trace(images)]
    found = layer_distances([t.inputs for t in traced], [t.outputs for t in traced])
    tolerance = reference.tolerance("layer_distances")
    close(found, reference["out.layer_distances"], tolerance, "distances")


def _rules(reference: Reference) -> None:
    candidates = reference["in.candidates"]
    used = candidates[:, 0] >= 0
    operations = set(candidates[:, 1][used].tolist())
    groups = set(candidates[:, 2][used].tolist())
    names = {number: "fc" if number == 1 else "conv" for number in operations}
    for i, (index, operation, group) in enumerate(candidates):
        cuts = [Cut(0, int(n), names[int(o)], int(g)) for n, o, g in zip(
            index, operation, group, strict=True) if n >= 0]  # fmt: skip
        found = rules(cuts, set(names.values()), groups)
        assert list(found) == reference["out.rules"][i].tolist(), i
        assert all(found) == bool(reference["out.valid"][i]), i


def _stitched(reference: Reference) -> None:
    x, parts = reference["in.x"], reference.under("in.")
    layers, shapes, stitches = [], [], []
    count = 1 + max(int(key.split(".")[1]) for key in parts if key.startswith("layers."))
    for i in range(count):
        stitches.append(_linear(reference.under(f"in.mlps.{i}.")))
        state = reference.under(f"in.layers.{i}.")
        bare = "weight" in state
        inner = _layer(state if bare else {k.partition(".")[2]: v for k, v in state.items()})
        layers.append(inner if bare else nn.Sequential(inner, nn.ReLU()))
        conv = isinstance(inner, nn.Conv2d)
        shapes.append(x.shape[1:] if conv else (inner.in_features,))
    classifier = _linear(reference.under("in.classifier."))
    with torch.no_grad():
        found = StitchedNetwork(layers, shapes, stitches, classifier)(x)
    close(found, reference["out.logits"], reference.tolerance(), "logits")


def _matching(reference: Reference) -> None:
    found = mean_cosine(reference["in.logits0"], reference["in.candidates"])
    close(found, reference["out.similarities"], reference.tolerance(), "similarities")
    assert int(found.argmax()) == int(reference["out.best"])


class _Turn:
    """What a client's turn offers, where its network and its teacher are given."""

    def __init__(self, logits: Tensor, teacher: nn.Module) -> None:
        self.module = LayeredNetworks({"given": ["fc1"]})
        self.scratch = {"pfedhr_teacher": teacher}
        self.logits = logits

    def features(self, layer: str) -> Tensor:
        return self.logits


def _distillation(reference: Reference) -> None:
    x, y, tolerance = reference["in.x"], reference["in.y"], reference.tolerance()
    student, teacher = (
        network(reference.under(f"in.{name}."), x.shape[1:]) for name in ("student", "teacher")
    )
    logits, given = student(x), teacher(x)
    close(logits.detach(), reference["out.student_logits"], tolerance, "student's logits")
    close(given.detach(), reference["out.teacher_logits"], tolerance, "teacher's logits")
    plain = F.cross_entropy(logits, y)
    for strength, out in _strengths(reference):
        total = Teacher(strength).on_loss(_Turn(logits, teacher), (x, y), plain)
        close(total.detach(), out, tolerance, f"loss, lambda {strength}")
    divergence = Teacher(1.0).on_loss(_Turn(logits, teacher), (x, y), plain) - plain
    close(divergence.detach(), reference["out.kl_student_teacher"], tolerance, "divergence")
    back = Teacher(1.0).on_loss(_Turn(given, student), (x, y), plain) - plain
    close(back.detach(), reference["out.kl_teacher_student"], tolerance, "divergence, other way")
    divergence.backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert all(p.grad is not None for p in student.parameters())


def _strengths(reference: Reference) -> list[tuple[float, Tensor]]:
    found = [
        (float(re.sub(r"^.*lambda_", "", key)), value)
        for key, value in reference.tensors.items()
        if "paper_first_loss_lambda_" in key
    ]
    assert found
    return found


def _layer(state: dict[str, Tensor]) -> nn.Module:
    weight = state["weight"]
    if weight.ndim == 2:
        return _linear(state)
    layer = nn.Conv2d(weight.shape[1], weight.shape[0], tuple(weight.shape[2:]))
    layer.load_state_dict(state)
    return layer


def _linear(state: dict[str, Tensor]) -> nn.Linear:
    layer = nn.Linear(*reversed(state["weight"].shape))
    layer.load_state_dict(state)
    return layer


_REPLAYS = {
    "cka": _cka,
    "layers": _layers,
    "rules": _rules,
    "stitched": _stitched,
    "matching": _matching,
    "distillation": _distillation,
}
