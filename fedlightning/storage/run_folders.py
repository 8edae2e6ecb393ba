"""The numbered folders ``version_0``, ``version_1``, ... that hold the results of runs."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from fedlightning.storage.files import os_errors_as_failures
from fedlightning.storage.run_layout import METRICS, ROUNDS

__all__ = ["claim_version", "newest_run", "next_version", "numbers_apart", "trained"]


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


def newest_run(root: Path) -> Path | None:
    """Return the folder of the run whose ``lightning_logs`` are in ``root``: of several the newest.

    What ``personalize`` and ``test`` have left beside it is not it.

    Example:
        >>> root = getfixture("tmp_path")
        >>> for version, table in ((9, "rounds.csv"), (10, "rounds.csv"), (11, "metrics.csv")):
        ...     folder = root / "lightning_logs" / f"version_{version}"
        ...     folder.mkdir(parents=True)
        ...     (folder / table).touch()
        >>> newest_run(root).name
        'version_10'
    """
    found = {table.parent for name in (METRICS, ROUNDS) for table in root.glob(f"*/*/{name}")}
    return max(trained(found), key=numbers_apart, default=None)


def trained(folders: Iterable[Path]) -> list[Path]:
    """Return the folders in which rounds were trained; all of them if there are no such."""
    every = list(folders)
    return [folder for folder in every if (folder / ROUNDS).is_file()] or every


def numbers_apart(path: Path) -> list[tuple[int, str]]:
    """Return a key that sorts version_10 after version_9."""
    return [
        (int(piece), "") if piece.isdigit() else (-1, piece)
        for piece in re.split(r"(\d+)", str(path))
    ]
