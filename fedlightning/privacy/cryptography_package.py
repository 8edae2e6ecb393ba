"""The package cryptography, which the extra ``masks`` installs."""

from __future__ import annotations

import importlib
from typing import Any

from fedlightning.errors import EnvironmentFailure

__all__ = ["cryptography_module"]


def cryptography_module(name: str) -> Any:
    """Return a module of the package cryptography.

    Args:
        name: Its path below the package.

    Raises:
        EnvironmentFailure: It is not installed.

    Example:
        >>> cryptography_module("exceptions").InvalidTag.__name__
        'InvalidTag'
    """
    try:
        return importlib.import_module(f"cryptography.{name}")
    except ImportError as error:
        raise EnvironmentFailure(
            f"masks need the package cryptography ({error}): pip install 'fedlightning[masks]'."
        ) from error
