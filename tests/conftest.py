"""What every test runs under."""

from __future__ import annotations

import os

import pytest
import torch


@pytest.fixture(autouse=True)
def _clean_process(monkeypatch, tmp_path):
    """One thread, no seed left over from another test, no file outside the test's own folder."""
    torch.set_num_threads(1)
    for name in list(os.environ):
        if name.startswith(("PL_", "FEDLIGHTNING_STRICT", "WANDB")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
