"""The numbered folders ``version_0``, ``version_1``, ... that hold the results of runs."""

from __future__ import annotations

import os
import re

from fedlightning.storage.files import os_errors_as_failures

__all__ = ["claim_version", "next_version"]


def claim_version(root: str | os.PathLike[str]) -> int:
    """Create the next free folder ``version_N`` in ``root`` and return ``N``.

    The folder itself is the claim: only one process can create it, and the others try the next
    number.

    Raises:
        EnvironmentFailure: The folder cannot be created.

    Example:
        >>> root = getfixture("tmp_path")
        >>> claim_version(root), claim_version(root)
        (0, 1)
    """
    number = next_version(root)
    while True:
        folder = os.path.join(root, f"version_{number}")
        with os_errors_as_failures("create", folder):
            try:
                os.makedirs(folder, exist_ok=False)
            except FileExistsError:
                number += 1
            else:
                return number


def next_version(root: str | os.PathLike[str]) -> int:
    """Return the number after the highest ``version_N`` in ``root``; create nothing.

    Example:
        >>> root = getfixture("tmp_path")
        >>> (root / "version_3").mkdir()
        >>> next_version(root)
        4
    """
    if not os.path.isdir(root):
        return 0
    found = (re.fullmatch(r"version_([0-9]+)", entry) for entry in os.listdir(root))
    return max((int(match[1]) + 1 for match in found if match), default=0)
