"""MNIST and its relatives, read from idx files."""

from __future__ import annotations

from abc import ABC
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from fedlightning.datamodules.examples import TensorExamples
from fedlightning.datamodules.vision.base import VisionDataModule, download
from fedlightning.datamodules.vision.idx import find_idx, read_idx
from fedlightning.errors import ConfigError, DataError, did_you_mean

__all__ = ["EMNIST", "MNIST", "FashionMNIST"]


class IdxDataModule(VisionDataModule, ABC):
    """An image dataset in idx files, in torchvision's folders or in one folder."""

    def prepare_data(self) -> None:
        """Download the files if ``download`` is set and they are missing."""
        if self.download:
            try:
                self._paths()
            except DataError:
                download(type(self).__name__, self.root, **self._attributes())

    def load(self) -> tuple[TensorExamples, TensorExamples]:
        """Read both pools: images (n, 1, height, width) uint8, labels (n,)."""
        self.prepare_data()
        paths = self._paths()
        return self._read(*paths[:2]), self._read(*paths[2:])

    def _names(self) -> tuple[str, str]:
        return "train", "t10k"

    def _attributes(self) -> dict[str, Any]:
        return {"train": True}

    def _folders(self) -> list[Path]:
        root, name = Path(self.root), type(self).__name__
        return [root / name / "raw", root / name, root]

    def _paths(self) -> list[Path]:
        filenames = [
            f"{name}-{content}"
            for name in self._names()
            for content in ("images-idx3-ubyte", "labels-idx1-ubyte")
        ]
        return find_idx(type(self).__name__, self._folders(), filenames)

    def _read(self, images_path: Path, labels_path: Path) -> TensorExamples:
        images, labels = read_idx(images_path), read_idx(labels_path)
        if images.ndim != 3 or labels.shape != images.shape[:1]:
            raise DataError(
                f"{images_path} and {labels_path.name} do not belong together: "
                f"images of shape {images.shape}, labels of shape {labels.shape}"
            )
        return TensorExamples(*self._decode(images, labels))

    def _decode(self, images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return images[:, None], labels


class MNIST(IdxDataModule):
    """MNIST: 60,000 + 10,000 handwritten digits, images (1, 28, 28), 10 classes.

    The files are looked for in ``root/MNIST/raw``, ``root/MNIST`` and ``root``, plain or gzipped.

    Args:
        root: Folder of the data.
        download: Download the data if it is missing.
        augment: Random crops of the image padded by 4 in training.
        normalize: Normalise by mean and standard deviation of the training images.
        kwargs: ``num_clients``, ``batch_size``, ``partition``, ...: see
            :class:`FederatedDataModule`.

    Example:
        >>> data = MNIST(num_clients=10, batch_size=32)
        >>> data.num_clients, data.num_classes
        (10, 10)

    Reference:
        LeCun, Cortes, Burges. The MNIST database of handwritten digits.
        https://yann.lecun.org/exdb/mnist
    """

    num_classes = 10
    mean = (0.1307,)
    std = (0.3081,)
    mirrored = False


class FashionMNIST(IdxDataModule):
    """Fashion-MNIST: 60,000 + 10,000 pictures of clothes, images (1, 28, 28), 10 classes.

    The files are looked for in ``root/FashionMNIST/raw``, ``root/FashionMNIST`` and ``root``, plain
    or gzipped; with the default ``root`` also where the Debian package ``dataset-fashion-mnist``
    installs them.

    Args:
        root: Folder of the data.
        download: Download the data if it is missing.
        augment: Random crops of the image padded by 4, and mirrored images, in training.
        normalize: Normalise by mean and standard deviation of the training images.
        kwargs: ``num_clients``, ``batch_size``, ``partition``, ...: see
            :class:`FederatedDataModule`.

    Example:
        >>> data = FashionMNIST(num_clients=10, batch_size=32)
        >>> data.num_clients, data.num_classes
        (10, 10)

    Reference:
        Xiao, Rasul, Vollgraf. Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine
        Learning Algorithms. 2017. https://arxiv.org/abs/1708.07747
    """

    num_classes = 10
    mean = (0.2860,)
    std = (0.3530,)
    mirrored = True

    def _folders(self) -> list[Path]:
        folders = super()._folders()
        if self.root == "data":
            folders.append(Path("/usr/share/datasets/fashion-mnist"))
        return folders


class EMNIST(IdxDataModule):
    """EMNIST: handwritten letters and digits, upright images (1, 28, 28).

    The files are looked for in ``root/EMNIST/raw``, ``root/EMNIST`` and ``root``, plain or gzipped.
    Labels start at 0 in every split, "letters" included.

    Args:
        split: "byclass" (62 classes), "bymerge" (47), "balanced" (47), "letters" (26), "digits"
            (10) or "mnist" (10).
        root: Folder of the data.
        download: Download the data if it is missing.
        augment: Random crops of the image padded by 4 in training.
        normalize: Normalise by mean and standard deviation of the training images ("byclass").
        kwargs: ``num_clients``, ``batch_size``, ``partition``, ...: see
            :class:`FederatedDataModule`.

    Raises:
        ConfigError: The split does not exist.

    Example:
        >>> EMNIST(split="balanced", num_clients=10).num_classes
        47

    Reference:
        Cohen, Afshar, Tapson, van Schaik. EMNIST: Extending MNIST to handwritten letters. 2017.
        https://arxiv.org/abs/1702.05373
    """

    classes_of: ClassVar[dict[str, int]] = {
        "byclass": 62,
        "bymerge": 47,
        "balanced": 47,
        "letters": 26,
        "digits": 10,
        "mnist": 10,
    }
    mean = (0.1736,)
    std = (0.3317,)
    mirrored = False

    def __init__(
        self,
        split: str = "byclass",
        root: str = "data",
        download: bool = False,
        augment: bool = False,
        normalize: bool = True,
        **kwargs: Any,
    ) -> None:
        if split not in self.classes_of:
            raise ConfigError(
                f"split must be one of {', '.join(self.classes_of)}, got {split!r}."
                f"{did_you_mean(str(split), self.classes_of)}"
            )
        super().__init__(root, download, augment, normalize, **kwargs)
        self.split = split
        self.num_classes = self.classes_of[split]

    def _names(self) -> tuple[str, str]:
        return f"emnist-{self.split}-train", f"emnist-{self.split}-test"

    def _attributes(self) -> dict[str, Any]:
        return {"train": True, "split": self.split}

    def _decode(self, images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        # The files store each image transposed, and number letters from 1.
        labels = labels.astype(np.int64) - 1 if self.split == "letters" else labels
        return images.swapaxes(1, 2)[:, None], labels
