"""What every test runs under."""

from __future__ import annotations

import gc
import os
import signal

import pytest
import torch


def pytest_collection_finish():
    """Spare collections of cycles the walk over all that is imported by then: 5 % of the time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _clean_process(monkeypatch, tmp_path):
    """One thread, no seed left over from another test, no file outside the test's own folder."""
    torch.set_num_threads(1)
    # a test run in the background inherits an ignored SIGINT
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for name in list(os.environ):
        if name.startswith(("PL_", "FEDLIGHTNING_STRICT", "WANDB")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def _no_pictures(request, monkeypatch):
    """Leave empty files for figures, which take longer than all the rest of a tiny run.

    A test that looks at them is marked with ``pictures``.
    """
    if request.node.get_closest_marker("pictures"):
        return
    for module in ("personalization.results", "callbacks.run_record"):
        monkeypatch.setattr(f"fedlightning.{module}.save_figure", lambda _, path: path.touch())
    monkeypatch.setattr(
        "fedlightning.personalization.results.clients_figure", lambda *_, **__: None
    )
    for name in ("curves", "partition", "timeline"):
        figure = f"fedlightning.callbacks.run_record.{name}_figure"
        monkeypatch.setattr(figure, lambda *_, **__: None)


@pytest.fixture
def forked_runs(monkeypatch):
    """Let the runs of a study be forks of this process, which start without loading torch."""
    from tests.forked_runs import ForkedRun

    monkeypatch.setattr("fedlightning.studies.runner.subprocess.Popen", ForkedRun)
