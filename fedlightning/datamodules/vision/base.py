"""The base of the image datasets: bytes in memory, made into float images batch by batch."""

from __future__ import annotations

from abc import ABC
from typing import Any, ClassVar

from fedlightning.core.batches import Batch
from fedlightning.datamodules.base import FederatedDataModule
from fedlightning.datamodules.vision.transforms import Scaling, random_crop_and_flip
from fedlightning.errors import EnvironmentFailure

__all__ = ["VisionDataModule", "download"]


class VisionDataModule(FederatedDataModule, ABC):
    """Images stored as uint8, shape (n, channels, height, width).

    A batch becomes float32 in 0..1 on its device and is then normalised; in training it may be
    augmented before that, so the margin of a crop is black.

    Args:
        root: Folder of the data.
        download: Download the data if it is missing.
        augment: In training, crop at random from the image padded by 4, and mirror half of the
            images if mirroring keeps their meaning.
        normalize: Subtract the dataset's mean and divide by its standard deviation, per channel.
        kwargs: ``num_clients``, ``batch_size``, ``partition``, ...: see
            :class:`FederatedDataModule`.
    """

    mean: ClassVar[tuple[float, ...]]
    std: ClassVar[tuple[float, ...]]
    mirrored: ClassVar[bool]

    def __init__(
        self,
        root: str = "data",
        download: bool = False,
        augment: bool = False,
        normalize: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.root = str(root)
        self.download = download
        self.augment = augment
        self.normalize = normalize
        self._scaling = Scaling(*(self.mean, self.std) if normalize else (None, None))

    def transform_batch(self, batch: Batch, training: bool) -> Batch:
        """Return float images and labels, scaled and augmented as the class describes."""
        images, labels = batch
        if training and self.augment:
            images = random_crop_and_flip(images, flip=self.mirrored)
        return self._scaling(images), labels

    @property
    def transforms_alike(self) -> bool:
        """Whether images are only scaled, in training and in evaluation."""
        own = getattr(self.transform_batch, "__func__", None)
        return own is VisionDataModule.transform_batch and not self.augment


def download(name: str, root: str, **attributes: Any) -> None:
    """Download a torchvision dataset into the folder where torchvision keeps it.

    Args:
        name: Class name in ``torchvision.datasets``.
        root: The folder of all datasets.
        attributes: Other attributes that the class's ``download`` reads, such as EMNIST's
            ``split``.

    Raises:
        EnvironmentFailure: No network, no space, or a checksum that does not match.
    """
    from torchvision import datasets

    kind = getattr(datasets, name)
    # Not the constructor: it would also read the data, for CIFAR by unpickling.
    files = kind.__new__(kind)
    vars(files).update(root=root, **attributes)
    try:
        files.download()
    except (OSError, RuntimeError, EOFError) as error:
        raise EnvironmentFailure(f"{name} cannot be downloaded into {root}: {error}") from error
