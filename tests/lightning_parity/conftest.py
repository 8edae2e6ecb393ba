"""Hundreds of trainers, each of which would look through all installed packages."""

from __future__ import annotations

from functools import cache
from importlib.metadata import entry_points
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _packages_searched_once(monkeypatch):
    registry = "lightning_fabric.utilities.registry.entry_points"
    monkeypatch.setattr(registry, _known_entry_points, raising=False)


@cache
def _known_entry_points(**group):
    return entry_points(**group)


def pytest_collection_modifyitems(items):
    """Expect the differences on record to fail; all other comparisons must hold."""
    lines = Path(__file__).with_name("known_differences.txt").read_text().splitlines()
    known = {line for line in lines if line and not line.startswith("#")}
    for item in items:
        if item.nodeid in known:
            item.add_marker(pytest.mark.xfail(reason="known_differences.txt", strict=False))
