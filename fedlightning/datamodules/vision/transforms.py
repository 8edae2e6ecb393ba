"""Transforms of a batch of images on its device: augmentation, scaling, normalisation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Scaling", "crop_and_flip", "random_crop_and_flip"]


class Scaling:
    """Turns bytes into float32 in 0..1 and, given mean and deviation, normalises per channel.

    Args:
        mean: Mean of each channel on the scale 0..1; None leaves the images in 0..1.
        std: Standard deviation of each channel.

    Example:
        >>> images = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 1, 1, 3)
        >>> Scaling(mean=(0.2,), std=(0.5,))(images).flatten().tolist()
        [-0.4000000059604645, 0.0, 1.600000023841858]
    """

    def __init__(self, mean: Sequence[float] | None, std: Sequence[float] | None) -> None:
        self.mean = mean
        self.std = std
        self._on_device: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def __call__(self, images: Tensor) -> Tensor:
        """Return float32 images of the same shape (n, channels, height, width)."""
        scaled = images.to(torch.float32).div_(255)
        if self.mean is None or self.std is None:
            return scaled
        if images.device not in self._on_device:
            columns = torch.tensor([self.mean, self.std], device=images.device).view(2, -1, 1, 1)
            self._on_device[images.device] = columns[0], columns[1]
        mean, std = self._on_device[images.device]
        return scaled.sub_(mean).div_(std)


def crop_and_flip(
    images: Tensor, top: Tensor, left: Tensor, flipped: Tensor, padding: int
) -> Tensor:
    """Pad with zeros, crop each image at its own offset to its old size, mirror some of them.

    Like torchvision's ``pad``, ``crop`` and ``hflip`` per image, in one gather.

    Args:
        images: Shape (n, channels, height, width), any dtype.
        top: First row of each crop in the padded image, int64, shape (n,).
        left: First column likewise.
        flipped: Which crops are mirrored left to right, bool, shape (n,).
        padding: Width of the black margin.

    Example:
        >>> image = torch.tensor([[1, 2], [3, 4]]).view(1, 1, 2, 2)
        >>> one, no, yes = torch.tensor([1]), torch.tensor([False]), torch.tensor([True])
        >>> crop_and_flip(image, one, one, yes, padding=1).tolist()
        [[[[2, 1], [4, 3]]]]
        >>> crop_and_flip(image, one - 1, one, no, padding=1).tolist()
        [[[[0, 0], [1, 2]]]]
    """
    n, channels, height, width = images.shape
    padded = F.pad(images, (padding, padding, padding, padding))
    down = torch.arange(height, device=images.device)
    right = torch.arange(width, device=images.device)
    rows = top[:, None] + down
    columns = left[:, None] + torch.where(flipped[:, None], right.flip(0), right)
    pixels = rows[:, :, None] * padded.shape[3] + columns[:, None, :]
    pixels = pixels.view(n, 1, -1).expand(n, channels, -1)
    return padded.flatten(2).gather(2, pixels).view_as(images)


def random_crop_and_flip(images: Tensor, padding: int = 4, flip: bool = True) -> Tensor:
    """Crop each padded image at random and mirror half of them.

    Like ``RandomCrop(size, padding)`` and ``RandomHorizontalFlip()`` per image. The random numbers
    come from the global CPU generator, so every device gets the same images.

    Args:
        images: Shape (n, channels, height, width).
        padding: Width of the black margin.
        flip: Whether to mirror images at all.

    Example:
        >>> images = torch.ones(2, 3, 32, 32, dtype=torch.uint8)
        >>> random_crop_and_flip(images).shape
        torch.Size([2, 3, 32, 32])
    """
    offsets = torch.randint(2 * padding + 1, (3, len(images)))
    offsets[2] = torch.randint(2, (len(images),)) if flip else 0
    top, left, flipped = offsets.to(images.device, non_blocking=True)
    return crop_and_flip(images, top, left, flipped.bool(), padding)
