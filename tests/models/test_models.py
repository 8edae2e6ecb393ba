"""The paper's networks: sizes, shapes, heads."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fedlightning.errors import ConfigError
from fedlightning.models import MLP, Conv4, MobileNet, ResNet18, TorchvisionClassifier


@pytest.mark.parametrize(
    ("model", "total", "head"),
    [
        (Conv4(10), 115_658, 2_570),
        (Conv4(100), 138_788, 25_700),
        (MobileNet(100), 3_309_476, 102_500),
        (MobileNet(10), 3_217_226, 10_250),
        (ResNet18(10), 11_173_962, 5_130),
        (ResNet18(100), 11_220_132, 51_300),
    ],
)
def test_parameters_are_as_many_as_in_the_paper(model, total, head):
    assert sum(p.numel() for p in model.parameters()) == total
    assert sum(p.numel() for p in model.head.parameters()) == head


@pytest.mark.parametrize("model", [Conv4(), MobileNet(10), ResNet18(10)])
def test_colour_images_give_logits(model):
    assert model(torch.rand(2, 3, 32, 32)).shape == (2, 10)


def test_small_grey_images_give_logits():
    assert Conv4(in_channels=1, image_size=28)(torch.rand(2, 1, 28, 28)).shape == (2, 10)
    assert MLP()(torch.rand(2, 1, 8, 8)).shape == (2, 10)


@pytest.mark.parametrize("model", [Conv4(), MobileNet()])
def test_batch_norm_of_the_papers_networks_has_no_running_statistics(model):
    assert not list(model.buffers())


def test_pooling_before_relu_gives_the_same_bits_forward_and_backward():
    torch.manual_seed(0)
    before, after = (
        nn.Sequential(nn.MaxPool2d(2), nn.ReLU()),
        nn.Sequential(nn.ReLU(), nn.MaxPool2d(2)),
    )
    x = torch.randn(2, 3, 8, 8).requires_grad_()
    one, other = before(x), after(x)
    assert torch.equal(one, other)
    weight = torch.randn_like(one)
    (grad_one,) = torch.autograd.grad((one * weight).sum(), x)
    (grad_other,) = torch.autograd.grad((other * weight).sum(), x)
    assert torch.equal(grad_one, grad_other)


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("resnet18", "net.fc"),
        ("mobilenet_v2", "net.classifier.1"),
        ("squeezenet1_1", "net.classifier.1"),
        ("vgg11", "net.classifier.6"),
        ("vit_b_32", "net.heads.head"),
        ("densenet121", "net.classifier"),
        ("swin_t", "net.head"),
    ],
)
def test_the_head_of_a_torchvision_network_is_found_and_resized(name, head):
    with torch.device("meta"):
        model = TorchvisionClassifier(name, num_classes=7)
    assert model.part_keys("head") == (f"{head}.weight", f"{head}.bias")
    assert model.state_dict()[f"{head}.weight"].shape[0] == 7


def test_a_misspelt_torchvision_network_is_told_the_near_name():
    with pytest.raises(ConfigError, match="Did you mean 'resnet18'"):
        TorchvisionClassifier("resnet_18")


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("lr", -1),
        ("lr", float("inf")),
        ("momentum", 1.5),
        ("weight_decay", -0.1),
        ("lr_milestones", [2]),
    ],
)
def test_numbers_out_of_range_are_refused(argument, value):
    with pytest.raises(ConfigError, match=argument):
        MLP(**{argument: value})


@pytest.mark.parametrize(
    "layer",
    [
        nn.EmbeddingBag(9, 4, sparse=True),
        nn.Embedding(9, 4, sparse=True),
        nn.Linear(4, 4, dtype=torch.cfloat),
    ],
    ids=["bag", "embedding", "complex"],
)
def test_the_optimizer_is_not_one_kernel_where_that_cannot_step(layer):
    net = MLP(in_features=4, num_classes=2)
    net.body.append(layer)
    assert net.configure_optimizers().param_groups[0]["fused"] is False


@pytest.mark.parametrize(("given", "fused"), [(None, True), (True, True), (False, False)])
def test_the_optimizer_is_one_kernel_unless_told_otherwise(given, fused):
    optimizer = MLP(in_features=4, num_classes=2, fused=given).configure_optimizers()
    assert optimizer.param_groups[0]["fused"] is fused
