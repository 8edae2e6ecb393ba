"""The notebooks run, cell after cell, as the scripts that they are."""

from __future__ import annotations

from pathlib import Path

import pytest

SCRIPTS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_notebook_runs(script, monkeypatch):
    pytest.importorskip("pandas")
    source = script.read_text()
    exec(compile(source, str(script), "exec"), {"__name__": "__notebook__"})
    assert source.count("# %%") >= 5
