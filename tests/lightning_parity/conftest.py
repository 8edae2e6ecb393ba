"""Hundreds of trainers, each of which would look through all installed packages."""

from __future__ import annotations

from functools import cache
from importlib.metadata import entry_points

import pytest


@pytest.fixture(autouse=True)
def _packages_searched_once(monkeypatch):
    registry = "lightning_fabric.utilities.registry.entry_points"
    monkeypatch.setattr(registry, _known_entry_points, raising=False)


@cache
def _known_entry_points(**group):
    return entry_points(**group)
