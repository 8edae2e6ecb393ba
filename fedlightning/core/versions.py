"""The versions of the packages that results depend on."""

from __future__ import annotations

import importlib.metadata
import platform

from fedlightning._version import __version__

__all__ = ["package_versions"]


def package_versions() -> dict[str, str]:
    """Return the versions of this package, Python and the packages below it.

    Example:
        >>> list(package_versions())[:2]
        ['fedlightning', 'python']
    """
    found = {"fedlightning": __version__, "python": platform.python_version()}
    for package in ("torch", "pytorch-lightning", "numpy"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
