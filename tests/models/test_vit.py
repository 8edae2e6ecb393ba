"""Vision transformers: the small one, and any of torchvision or timm."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedlightning.errors import ConfigError
from fedlightning.models import SmallViT, TimmClassifier, TorchvisionClassifier
from tests.toys import net

SMALL = {"image_size": 6, "patch_size": 3, "in_channels": 2, "dim": 8, "depth": 2, "heads": 2}


def by_hand(model: Any, x: Tensor) -> Tensor:
    """Return the logits of a small ViT with attention and patches written out, head by head."""
    w = dict(model.named_parameters())
    side, size, heads = model.hparams.image_size, model.hparams.patch_size, model.hparams.heads
    tokens = [w["body.0.token"][0, 0].expand(len(x), -1)]
    kernel = w["body.0.project.weight"].flatten(1)
    for row in range(0, side, size):
        for column in range(0, side, size):
            patch = x[:, :, row : row + size, column : column + size].flatten(1)
            tokens.append(patch @ kernel.T + w["body.0.project.bias"])
    h = torch.stack(tokens, dim=1) + w["body.0.positions"]
    dim = h.shape[-1]
    for block in range(1, model.hparams.depth + 1):
        at = f"body.{block}"

        def norm(h: Tensor, name: str) -> Tensor:
            return F.layer_norm(h, (dim,), w[f"{name}.weight"], w[f"{name}.bias"])

        def linear(h: Tensor, name: str) -> Tensor:
            return h @ w[f"{name}.weight"].T + w[f"{name}.bias"]

        three = linear(norm(h, f"{at}.norm1"), f"{at}.attention.project")
        query, key, value = three.split(dim, dim=-1)
        seen = []
        for part in torch.arange(dim).chunk(heads):
            scores = query[..., part] @ key[..., part].mT / len(part) ** 0.5
            seen.append(scores.softmax(dim=-1) @ value[..., part])
        h = h + linear(torch.cat(seen, dim=-1), f"{at}.attention.merge")
        wide = F.gelu(linear(norm(h, f"{at}.norm2"), f"{at}.mlp.0"))
        h = h + linear(wide, f"{at}.mlp.2")
    h = norm(h, f"body.{model.hparams.depth + 1}")
    return h[:, 0] @ w["head.weight"].T + w["head.bias"]


def test_it_computes_what_a_vision_transformer_computes():
    model = net(module=SmallViT, **SMALL, num_classes=3).double()
    x = torch.randn(4, 2, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(model(x), by_hand(model, x), atol=1e-12)


@pytest.mark.parametrize(("arguments", "shape", "parameters"), [
    # patches + positions with the learnt token + blocks + norm + head
    ({}, (1, 8, 8), 160 + 17 * 32 + 32 + 3 * 12_704 + 64 + 330),
    ({"image_size": 28, "patch_size": 7}, (1, 28, 28),
     1600 + 17 * 32 + 32 + 3 * 12_704 + 64 + 330),
    ({"image_size": 32, "patch_size": 8, "in_channels": 3, "depth": 0 + 1, "mlp_ratio": 0.5},
     (3, 32, 32), 6176 + 17 * 32 + 32 + (4224 + 128 + 528 + 544) + 64 + 330),
])  # fmt: skip
def test_shapes_and_sizes(arguments, shape, parameters):
    model = SmallViT(**arguments)
    assert model(torch.rand(2, *shape)).shape == (2, 10)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert model.part_keys("head") == ("head.weight", "head.bias")
    assert not list(model.buffers())
    assert not any(isinstance(child, nn.modules.batchnorm._BatchNorm) for child in model.modules())


@pytest.mark.parametrize(("arguments", "message"), [
    ({"patch_size": 3}, "patch_size=3 must be a divisor of image_size=8"),
    ({"heads": 5}, "heads=5 must be a divisor of dim=32"),
    ({"depth": 0}, "depth must be an integer >= 1"),
    ({"mlp_ratio": 0}, "mlp_ratio"), ({"dropout": 1.0}, "dropout"),
    ({"warmup_steps": -1}, "warmup_steps must be an integer >= 0"),
])  # fmt: skip
def test_what_cannot_be_is_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        SmallViT(**arguments)


def test_torchvisions_builder_gets_further_arguments():
    model = TorchvisionClassifier("vit_b_32", num_classes=3, network={"image_size": 64})
    assert model(torch.rand(2, 3, 64, 64)).shape == (2, 3)
    assert model.part_keys("head") == ("net.heads.head.weight", "net.heads.head.bias")
    with pytest.raises(ConfigError, match=r"model\.network=\{'size': 64\}: .*'size'"):
        TorchvisionClassifier("vit_b_32", network={"size": 64})


class Stub(nn.Module):
    """What timm would build, as far as it matters."""

    def __init__(self, num_classes: int, img_size: int = 224, classifier: Any = "head") -> None:
        super().__init__()
        self.pretrained_cfg = {"classifier": classifier}
        self.flat, self.norm = nn.Flatten(), nn.LayerNorm(img_size)
        self.head = nn.Linear(img_size, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.norm(self.flat(x)))
        return logits


@pytest.fixture
def timm(monkeypatch):
    """Put a module of timm's interface in its place."""
    module = ModuleType("timm")
    networks = {"vit_stub": Stub, "vit_nameless": lambda **k: Stub(classifier=None, **k)}
    vars(module).update(vars(SimpleNamespace(
        is_model=networks.__contains__, list_models=lambda: list(networks),
        create_model=lambda name, **kwargs: networks[name](**kwargs),
    )))  # fmt: skip
    monkeypatch.setitem(sys.modules, "timm", module)


def test_timms_classifier_is_the_head(timm):
    model = TimmClassifier("vit_stub", num_classes=4, network={"img_size": 8})
    assert model.part_keys("head") == ("net.head.weight", "net.head.bias")
    assert model(torch.rand(2, 8)).shape == (2, 4)
    named = TimmClassifier("vit_nameless", network={"img_size": 8}, head="net.head")
    assert named.part_keys("head") == ("net.head.weight", "net.head.bias")


@pytest.mark.parametrize(("arguments", "message"), [
    ({"name": "vit_stubb"}, "Did you mean 'vit_stub'"),
    ({"name": "vit_stub", "network": {"size": 3}}, r"model\.network=\{'size': 3\}: .*'size'"),
    ({"name": "vit_nameless"}, r"which layer of vit_nameless is its classifier; .* model\.head"),
])  # fmt: skip
def test_timms_mistakes_are_told(timm, arguments, message):
    with pytest.raises(ConfigError, match=message):
        TimmClassifier(**arguments)


def test_without_timm_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match=r"pip install 'fedlightning\[timm\]'"):
        TimmClassifier()
