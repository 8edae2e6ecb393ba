"""Download of the vision sets, through torchvision and its checksums."""

from __future__ import annotations

from typing import Any

from fedlightning.errors import EnvironmentFailure

__all__ = ["download"]


def download(name: str, root: str, **attributes: Any) -> None:
    """Download a data set of torchvision's into the folder where torchvision keeps it.

    Args:
        name: Class name in ``torchvision.datasets``.
        root: The folder of all data sets.
        attributes: What else the class's ``download`` looks at, such as EMNIST's ``split``.

    Raises:
        EnvironmentFailure: No network, no space, or a checksum that does not fit.
    """
    from torchvision import datasets

    kind = getattr(datasets, name)
    # Not the constructor: it goes on to read the data, for CIFAR by unpickling.
    files = kind.__new__(kind)
    vars(files).update(root=root, **attributes)
    try:
        files.download()
    except (OSError, RuntimeError, EOFError) as error:
        raise EnvironmentFailure(f"{name} cannot be downloaded into {root}: {error}") from error
