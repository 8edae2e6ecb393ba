"""MobileNet v1 for 32x32 images, FedBABU's network for CIFAR100."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from fedlightning.core.validation import check_integer
from fedlightning.models.base import FederatedModule

__all__ = ["MobileNet"]

# output channels of the depthwise-separable blocks, and the stride where it is not 1
_BLOCKS = (
    (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2),
    (512, 1), (512, 1), (512, 1), (512, 1), (512, 1), (1024, 2), (1024, 1),
)  # fmt: skip


class MobileNet(FederatedModule):
    """MobileNet with a 3x3 stem of stride 1 and BatchNorm without running statistics.

    Args:
        num_classes: Number of classes.
        in_channels: Channels of the images.
        **kwargs: Arguments of :class:`FederatedModule`: ``lr``, ``momentum``, ``weight_decay``,
            ``head``, ...

    Source:
        Howard et al. MobileNets. 2017. https://arxiv.org/abs/1704.04861; sizes as in
        Oh, Kim, Yun. FedBABU. ICLR 2022. https://arxiv.org/abs/2106.06042

    Example:
        >>> net = MobileNet(num_classes=100)
        >>> sum(p.numel() for p in net.parameters()), sum(p.numel() for p in net.head.parameters())
        (3309476, 102500)
    """

    def __init__(self, num_classes: int = 100, in_channels: int = 3, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_integer("num_classes", num_classes, at_least=1)
        check_integer("in_channels", in_channels, at_least=1)
        self.save_hyperparameters()
        channels = [32, *(out for out, _ in _BLOCKS)]
        blocks = [
            _DepthwiseSeparable(channels[index], out, stride)
            for index, (out, stride) in enumerate(_BLOCKS)
        ]
        self.body = nn.Sequential(
            OrderedDict(
                conv1=nn.Conv2d(in_channels, 32, kernel_size=3, padding=1, bias=False),
                bn1=nn.BatchNorm2d(32, track_running_stats=False),
                relu=nn.ReLU(inplace=True),
                layers=nn.Sequential(*blocks),
                pool=nn.AdaptiveAvgPool2d(1),
                flatten=nn.Flatten(),
            )
        )
        self.head = nn.Linear(1024, num_classes)


class _DepthwiseSeparable(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(
            in_channels, in_channels, 3, stride, padding=1, groups=in_channels, bias=False
        )
        self.bn1 = nn.BatchNorm2d(in_channels, track_running_stats=False)
        self.conv2 = nn.Conv2d(in_channels, out_channels, kernel_size=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return F.relu(self.bn2(self.conv2(x)), inplace=True)
