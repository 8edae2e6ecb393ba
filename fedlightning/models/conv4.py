"""4convNet: four convolutional blocks and a linear head, FedBABU's network for CIFAR10."""

from __future__ import annotations

from collections import OrderedDict
from itertools import pairwise
from typing import Any

from torch import nn

from fedlightning.core.validation import check_integer
from fedlightning.models.base import FederatedModule

__all__ = ["Conv4"]


class Conv4(FederatedModule):
    """4 x [3x3 convolution, BatchNorm without running statistics, ReLU, 2x2 max-pool], then linear.

    Without running statistics, evaluation normalises with the test batch's own: accuracies depend
    on how test data is cut into batches (128 in the paper).

    Args:
        num_classes: Number of classes.
        in_channels: Channels of the images.
        image_size: Height and width of the images, at least 16.
        width: Channels of every block.
        **kwargs: Arguments of :class:`FederatedModule`: ``lr``, ``momentum``, ``weight_decay``,
            ``head``, ...

    Source:
        Oh, Kim, Yun. FedBABU. ICLR 2022. https://arxiv.org/abs/2106.06042, appendix A.

    Example:
        >>> net = Conv4(num_classes=10)
        >>> sum(p.numel() for p in net.parameters()), sum(p.numel() for p in net.head.parameters())
        (115658, 2570)
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        image_size: int = 32,
        width: int = 64,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_integer("num_classes", num_classes, at_least=1)
        check_integer("in_channels", in_channels, at_least=1)
        check_integer("image_size", image_size, at_least=16)
        check_integer("width", width, at_least=1)
        self.save_hyperparameters()
        channels = [in_channels, width, width, width, width]
        blocks = [_block(*pair) for pair in pairwise(channels)]
        self.body = nn.Sequential(
            OrderedDict(features=nn.Sequential(*blocks), flatten=nn.Flatten())
        )
        self.head = nn.Linear(width * (image_size // 16) ** 2, num_classes)


def _block(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1),
        nn.BatchNorm2d(out_channels, track_running_stats=False),
        nn.MaxPool2d(2),  # before the ReLU: the same values, a quarter of the ReLU's work
        nn.ReLU(inplace=True),
    )
