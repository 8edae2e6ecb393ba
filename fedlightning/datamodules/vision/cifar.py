"""CIFAR-10 and CIFAR-100, read from the Python version of the files."""

from __future__ import annotations

from abc import ABC
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from fedlightning.datamodules.examples import TensorExamples
from fedlightning.datamodules.vision.base import VisionDataModule, download
from fedlightning.datamodules.vision.cifar_files import read_cifar_batch
from fedlightning.errors import DataError

__all__ = ["CIFAR10", "CIFAR100"]


class CifarDataModule(VisionDataModule, ABC):
    """A CIFAR dataset; its files are in ``root`` or in the folder that the archive unpacks to."""

    folder: ClassVar[str]
    train_files: ClassVar[tuple[str, ...]]
    test_files: ClassVar[tuple[str, ...]]
    labels_key: ClassVar[str]
    mirrored = True

    def __init__(
        self,
        root: str = "data",
        download: bool = False,
        augment: bool = True,
        normalize: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(root, download, augment, normalize, **kwargs)

    def prepare_data(self) -> None:
        """Download and unpack the archive if ``download`` is set and the files are missing."""
        if self.download and self._found() is None:
            download(type(self).__name__, self.root)

    def load(self) -> tuple[TensorExamples, TensorExamples]:
        """Read both pools: images (n, 3, 32, 32) uint8, labels (n,)."""
        self.prepare_data()
        folder = self._found()
        if folder is None:
            raise DataError(
                f"{type(self).__name__} not found: no {self.train_files[0]} in "
                f"{', '.join(map(str, self._folders()))}; set root to the folder that has it, or "
                f"download=true, which needs a network"
            )
        return self._read(folder, self.train_files), self._read(folder, self.test_files)

    def _folders(self) -> list[Path]:
        return [Path(self.root, self.folder), Path(self.root)]

    def _found(self) -> Path | None:
        present = [folder for folder in self._folders() if (folder / self.train_files[0]).is_file()]
        return present[0] if present else None

    def _read(self, folder: Path, filenames: tuple[str, ...]) -> TensorExamples:
        batches = [read_cifar_batch(folder / name, self.labels_key) for name in filenames]
        images, labels = zip(*batches, strict=True)
        return TensorExamples(np.concatenate(images), np.concatenate(labels))


class CIFAR10(CifarDataModule):
    """CIFAR-10: 50,000 + 10,000 photographs, images (3, 32, 32), 10 classes.

    The files are looked for in ``root/cifar-10-batches-py`` and ``root``. They are pickles,
    read by a reader that runs no code.

    Args:
        root: Folder of the data.
        download: Download the data if it is missing.
        augment: Random crops of the image padded by 4, and mirrored images, in training.
        normalize: Normalise per channel.
        kwargs: ``num_clients``, ``batch_size``, ``partition``, ...: see
            :class:`FederatedDataModule`.

    Example:
        >>> data = CIFAR10(num_clients=100, batch_size=50)
        >>> data.num_classes, data.augment
        (10, True)

    Reference:
        Krizhevsky. Learning Multiple Layers of Features from Tiny Images. 2009.
        https://www.cs.toronto.edu/~kriz/cifar.html
    """

    num_classes = 10
    mean = (0.485, 0.456, 0.406)
    std = (0.229, 0.224, 0.225)
    folder = "cifar-10-batches-py"
    train_files = tuple(f"data_batch_{number}" for number in range(1, 6))
    test_files = ("test_batch",)
    labels_key = "labels"


class CIFAR100(CifarDataModule):
    """CIFAR-100: 50,000 + 10,000 photographs, images (3, 32, 32), the 100 fine classes.

    The files are looked for in ``root/cifar-100-python`` and ``root``. They are pickles, read by
    a reader that runs no code.

    Args:
        root: Folder of the data.
        download: Download the data if it is missing.
        augment: Random crops of the image padded by 4, and mirrored images, in training.
        normalize: Normalise per channel.
        kwargs: ``num_clients``, ``batch_size``, ``partition``, ...: see
            :class:`FederatedDataModule`.

    Example:
        >>> data = CIFAR100(num_clients=100, batch_size=50)
        >>> data.num_classes, data.augment
        (100, True)

    Reference:
        Krizhevsky. Learning Multiple Layers of Features from Tiny Images. 2009.
        https://www.cs.toronto.edu/~kriz/cifar.html
    """

    num_classes = 100
    mean = (0.507, 0.487, 0.441)
    std = (0.267, 0.256, 0.276)
    folder = "cifar-100-python"
    train_files = ("train",)
    test_files = ("test",)
    labels_key = "fine_labels"
