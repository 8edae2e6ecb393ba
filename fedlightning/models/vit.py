"""A small vision transformer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedlightning.core.validation import check_integer, check_number
from fedlightning.errors import ConfigError
from fedlightning.models.base import FederatedModule

__all__ = ["SmallViT"]


class _Patches(nn.Module):
    """Turns images of shape (batch, channels, side, side) into tokens, a learnt one first."""

    def __init__(self, image_size: int, patch_size: int, in_channels: int, dim: int) -> None:
        super().__init__()
        count = (image_size // patch_size) ** 2
        self.project = nn.Conv2d(in_channels, dim, patch_size, stride=patch_size)
        self.token = nn.Parameter(torch.zeros(1, 1, dim))
        self.positions = nn.Parameter(torch.empty(1, count + 1, dim).normal_(std=0.02))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.project(x).flatten(2).transpose(1, 2)
        return torch.cat([self.token.expand(len(x), -1, -1), tokens], dim=1).add(self.positions)


class _Attention(nn.Module):
    """Self-attention of several heads."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.project = nn.Linear(dim, 3 * dim)
        self.merge = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, dim = x.shape
        three = self.project(x).view(batch, tokens, 3, self.heads, dim // self.heads)
        query, key, value = three.permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(query, key, value)
        merged: Tensor = self.merge(seen.transpose(1, 2).reshape(batch, tokens, dim))
        return merged


class _Block(nn.Module):
    """Attention and a perceptron, each normalised before and added to what goes in."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float, dropout: float) -> None:
        super().__init__()
        width = max(1, round(mlp_ratio * dim))
        self.norm1, self.attention = nn.LayerNorm(dim), _Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, width), nn.GELU(), nn.Linear(width, dim))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.dropout(self.attention(self.norm1(x)))
        return x.add(self.dropout(self.mlp(self.norm2(x))))


class _FirstToken(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0]


class SmallViT(FederatedModule):
    """A vision transformer for small images: layer norms before attention, no BatchNorm.

    Square patches become tokens, of which one more, learnt, is classified by a linear head. With
    its defaults, for the 8x8 digits, it has 39,242 parameters; for 28x28 images take
    ``image_size=28, patch_size=7``.

    Args:
        image_size: Height and width of the images, in pixels.
        patch_size: Height and width of a patch; a divisor of ``image_size``.
        in_channels: Channels of the images.
        dim: Numbers per token.
        depth: Number of blocks.
        heads: Attention heads; a divisor of ``dim``.
        mlp_ratio: Width of a block's perceptron, in multiples of ``dim``.
        dropout: Probability with which a number of a block's output is dropped.
        num_classes: Number of classes.
        **kwargs: Arguments of :class:`FederatedModule`: ``lr``, ``momentum``, ``weight_decay``,
            ``warmup_steps``, ...

    Raises:
        ConfigError: If a number is out of its range, or does not divide another one.

    Source:
        Dosovitskiy et al. An Image is Worth 16x16 Words: Transformers for Image Recognition at
        Scale. ICLR 2021. https://arxiv.org/abs/2010.11929

    Example:
        >>> net = SmallViT(image_size=8, patch_size=2, num_classes=10)
        >>> net.part_keys("head"), sum(p.numel() for p in net.parameters())
        (('head.weight', 'head.bias'), 39242)
    """

    def __init__(
        self,
        image_size: int = 8,
        patch_size: int = 2,
        in_channels: int = 1,
        dim: int = 32,
        depth: int = 3,
        heads: int = 4,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        num_classes: int = 10,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        for name, value in (
            ("image_size", image_size), ("patch_size", patch_size), ("in_channels", in_channels),
            ("dim", dim), ("depth", depth), ("heads", heads), ("num_classes", num_classes),
        ):  # fmt: skip
            check_integer(name, value, at_least=1)
        check_number("mlp_ratio", mlp_ratio, above=0)
        check_number("dropout", dropout, at_least=0, below=1)
        for small, large, names in (
            (patch_size, image_size, ("patch_size", "image_size")),
            (heads, dim, ("heads", "dim")),
        ):
            if large % small:
                raise ConfigError(f"{names[0]}={small} must be a divisor of {names[1]}={large}.")
        self.save_hyperparameters()
        blocks = [_Block(dim, heads, mlp_ratio, dropout) for _ in range(depth)]
        patches = _Patches(image_size, patch_size, in_channels, dim)
        self.body = nn.Sequential(patches, *blocks, nn.LayerNorm(dim), _FirstToken())
        self.head = nn.Linear(dim, num_classes)
