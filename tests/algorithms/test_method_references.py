"""Numeric references of published systems, replayed through the public classes.

The folder is named by ``FEDLIGHTNING_REFERENCES``, by default ``../shared/references`` beside the
repository. ``SYSTEM_anything.json`` is replayed by ``tests/algorithms/references/SYSTEM.py``.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
from pathlib import Path
from types import ModuleType

import pytest

from tests.algorithms import references
from tests.algorithms.references.reference import Reference

_DEFAULT = Path(__file__).parents[2].parent / "shared" / "references"
FOLDER = Path(os.environ.get("FEDLIGHTNING_REFERENCES", _DEFAULT))
FILES = sorted(FOLDER.glob("*.json"))
REPLAYS = {m.name for m in pkgutil.iter_modules(references.__path__)} - {"reference"}


def replay_of(name: str) -> ModuleType:
    """Return what replays a reference of this name.

    Raises:
        LookupError: Nothing does.
    """
    system = name.partition("_")[0]
    if system not in REPLAYS:
        raise LookupError(f"{name}: no tests/algorithms/references/{system}.py replays it")
    return importlib.import_module(f"{references.__name__}.{system}")


@pytest.mark.skipif(not FOLDER.is_dir(), reason=f"there are no references in {FOLDER}")
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_reference_is_replayed(path):
    replay_of(path.stem).replay(Reference.read(path))


def test_a_reference_of_an_unknown_system_is_an_error():
    with pytest.raises(LookupError, match=r"nobody_knows: no tests/algorithms/references/nobody"):
        replay_of("nobody_knows")
