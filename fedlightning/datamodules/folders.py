"""A folder per client, with a folder per class in each."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor
from torch.utils.data import Dataset

from fedlightning.core.validation import check_integer
from fedlightning.datamodules.base import FederatedDataModule
from fedlightning.datamodules.client_splits import ClientSplit, SplitWithin, split_of
from fedlightning.datamodules.dataset_examples import DatasetExamples
from fedlightning.datamodules.examples import Examples
from fedlightning.datamodules.partitions.natural import NaturalIds
from fedlightning.errors import ConfigError, DataError

__all__ = ["FederatedFolders"]

_PARTS = {"train", "test", "val", "valid", "validation", "dev"}
_IMAGES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


class FederatedFolders(FederatedDataModule):
    """Images in ``root/client/class/``, or in ``root/train/client/class/`` and ``root/test/...``.

    All clients have one list of classes, the sorted names of all class folders, whether a client
    has images of each or not. Images are read when they are visited.

    Args:
        root: The folder.
        size: Height and width to which images are resized, one number for both; None leaves them,
            for images that are of one size.
        transform: Makes an input of a PIL image; None means RGB, ``size``, and float32 in 0..1,
            shape (3, height, width). Random augmentation belongs here or in ``transform_batch``.
        extensions: The files that are images.
        load_file: Reads a file; None opens it as an RGB image.
        split: How each client's images are divided where there is no folder ``test``; None means at
            random, a fifth to test on.
        num_workers: Processes that read ahead, shared by all clients and kept for the run.
        kwargs: ``batch_size``, ``val_fraction``, ...: see :class:`FederatedDataModule`. The clients
            are the folders.

    Attributes:
        classes: The names of the classes in the order of their numbers.

    Raises:
        ConfigError: ``root`` is not a folder of clients' folders.
        DataError: A client has no folder of a class, or no image.

    Example:
        >>> from torchvision.transforms.v2.functional import to_pil_image
        >>> root = getfixture("tmp_path")
        >>> for place in ("mayo/ill", "mayo/well", "charite/well"):
        ...     (root / place).mkdir(parents=True)
        ...     for at in range(5):
        ...         to_pil_image(torch.rand(3, 9, 9)).save(root / place / f"{at}.png")
        >>> data = FederatedFolders(root, size=8, batch_size=4, seed=0)
        >>> data.setup()
        >>> data.client_names, data.classes, data.num_examples(1)
        (('charite', 'mayo'), ('ill', 'well'), 8)
        >>> [(x.shape, y.tolist()) for x, y in data.batches(0, "test")]
        [(torch.Size([1, 3, 8, 8]), [1])]
    """

    def __init__(
        self,
        root: str | Path,
        size: int | tuple[int, int] | None = None,
        transform: Callable[[Any], Any] | None = None,
        extensions: tuple[str, ...] = _IMAGES,
        load_file: Callable[[str], Any] | None = None,
        split: ClientSplit | None = None,
        num_workers: int = 0,
        **kwargs: Any,
    ) -> None:
        for name in ("num_clients", "partition"):
            if name in kwargs:
                raise ConfigError(f"{name} follows from the folders in root; leave it out")
        self.root = Path(root)
        train, test = _places(self.root)
        self._folders = [train] if test is None else [train, test]
        self.extensions = tuple(suffix.lower() for suffix in extensions)
        self.client_names = tuple(folder.name for folder in _subfolders(train))
        self.classes = _classes(self._folders)
        known = set(self.client_names)
        if test is not None and (
            extra := [f.name for f in _subfolders(test) if f.name not in known]
        ):
            rank_zero_warn(
                f"{test} has folders of clients that do not train, and are left out: "
                f"{', '.join(extra[:5])}"
            )
        super().__init__(num_clients=len(self.client_names), partition=None, **kwargs)
        self.client_split = split_of(test, split)
        self.num_workers = check_integer("num_workers", num_workers, at_least=0)
        self.num_classes = len(self.classes)
        self._read = load_file if load_file is not None else _open_image
        self._transform = transform if transform is not None else _Default(size)

    def load(self) -> tuple[Examples, Examples]:
        """List the files."""
        listed = [self._files(folder) for folder in self._folders]
        pools = [
            DatasetExamples(
                _Files(paths, labels, self._read, self._transform), num_workers=self.num_workers
            )
            for paths, labels, _ in listed
        ]
        owners = NaturalIds(listed[0][2], listed[1][2] if len(listed) > 1 else None)
        self.partition = owners
        if len(pools) == 1:
            assert self.client_split is not None
            self.partition = SplitWithin(owners, self.client_split)
        return pools[0], pools[-1]

    def _files(self, folder: Path) -> tuple[list[str], list[int], list[str]]:
        """Return the path, the class and the owner of every image below a folder."""
        paths: list[str] = []
        labels: list[int] = []
        owners: list[str] = []
        assert self.client_names is not None
        for client in self.client_names:
            before = len(paths)
            for label, name in enumerate(self.classes):
                place = folder / client / name
                found = sorted(
                    str(path)
                    for path in (place.rglob("*") if place.is_dir() else ())
                    if path.suffix.lower() in self.extensions
                )
                paths += found
                labels += [label] * len(found)
            if folder == self._folders[0] and len(paths) == before:
                raise DataError(
                    f"{folder / client} holds no image ({', '.join(self.extensions[:4])}, ...)"
                )
            owners += [client] * (len(paths) - before)
        return paths, labels, owners


class _Files(Dataset[Any]):
    def __init__(
        self,
        paths: list[str],
        targets: list[int],
        read: Callable[[str], Any],
        transform: Callable[[Any], Any],
    ) -> None:
        self.paths = paths
        self.targets = targets
        self._read = read
        self._transform = transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Any:
        return self._transform(self._read(self.paths[index])), self.targets[index]

    def content(self) -> bytes:
        """Return client, class, name and size of every file."""
        known = hashlib.sha256()
        for path in map(Path, self.paths):
            known.update(f"{'/'.join(path.parts[-3:])} {path.stat().st_size}\n".encode())
        return known.digest()


class _Default:
    """Makes a float image of one size."""

    def __init__(self, size: int | tuple[int, int] | None) -> None:
        from torchvision.transforms import v2

        both = (size, size) if isinstance(size, int) else size
        steps: list[Any] = [v2.PILToTensor()]
        if both is not None:
            steps.append(v2.Resize(list(both), antialias=True))
        self._steps = v2.Compose([*steps, v2.ToDtype(torch.float32, scale=True)])

    def __call__(self, image: Any) -> Tensor:
        made: Tensor = self._steps(image)
        return made


def _open_image(path: str) -> Any:
    from PIL import Image

    with Image.open(path) as image:
        return image.convert("RGB")


def _places(root: Path) -> tuple[Path, Path | None]:
    """Return the folder of the clients' training images, and that of their test images, if any."""
    if not root.is_dir():
        raise ConfigError(f"root={root}: no such folder")
    names = {folder.name for folder in _subfolders(root)}
    if names == {"train", "test"}:
        return root / "train", root / "test"
    if {"train", "test"} <= names or ("train" in names and names <= _PARTS):
        raise ConfigError(
            f"root={root} has the folders {', '.join(sorted(names))}: it needs one per client, or "
            "train and test alone, each with a folder per client. Without test, name root=.../train"
            "; validation images are a share of the training images (val_fraction)"
        )
    if not names:
        raise ConfigError(f"root={root} has no folders; it needs one per client")
    return root, None


def _subfolders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _classes(folders: list[Path]) -> tuple[str, ...]:
    names: set[str] = set()
    for folder in folders:
        for client in _subfolders(folder):
            own = {each.name for each in _subfolders(client)}
            if not own:
                raise DataError(
                    f"{client} has no folder of a class: images are expected in "
                    f"{client}/CLASS/, one folder per class"
                )
            names |= own
    return tuple(sorted(names))
