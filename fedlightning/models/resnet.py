"""ResNet18 for 32x32 images."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from fedlightning.core.validation import check_integer
from fedlightning.models.base import FederatedModule

__all__ = ["ResNet18"]


class ResNet18(FederatedModule):
    """ResNet18 with a 3x3 stem, no max-pool, and BatchNorm whose statistics are averaged.

    Args:
        num_classes: Number of classes.
        in_channels: Channels of the images.
        **kwargs: Arguments of :class:`FederatedModule`: ``lr``, ``momentum``, ``weight_decay``,
            ``head``, ...

    Source:
        He, Zhang, Ren, Sun. Deep Residual Learning for Image Recognition. CVPR 2016.
        https://arxiv.org/abs/1512.03385

    Example:
        >>> net = ResNet18(num_classes=10)
        >>> sum(p.numel() for p in net.parameters()), sum(p.numel() for p in net.head.parameters())
        (11173962, 5130)
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 3, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_integer("num_classes", num_classes, at_least=1)
        check_integer("in_channels", in_channels, at_least=1)
        self.save_hyperparameters()
        self.body = nn.Sequential(
            OrderedDict(
                conv1=nn.Conv2d(in_channels, 64, kernel_size=3, padding=1, bias=False),
                bn1=nn.BatchNorm2d(64),
                relu=nn.ReLU(inplace=True),
                layer1=_stage(64, 64, stride=1),
                layer2=_stage(64, 128, stride=2),
                layer3=_stage(128, 256, stride=2),
                layer4=_stage(256, 512, stride=2),
                pool=nn.AdaptiveAvgPool2d(1),
                flatten=nn.Flatten(),
            )
        )
        self.head = nn.Linear(512, num_classes)


def _stage(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        _BasicBlock(in_channels, out_channels, stride), _BasicBlock(out_channels, out_channels, 1)
    )


class _BasicBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x), inplace=True)
