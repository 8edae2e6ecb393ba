"""`Run`: what a folder says of a run, and what is made of it with the program's own objects."""

from __future__ import annotations

import html
import os
import pickle
import re
import sys

import pytest
import torch
from torch import nn

from fedlightning import FedBABU, FederatedModule, PersonalizationCallback, Run
from fedlightning.core.state import live_state
from fedlightning.datamodules import ClientDatasets
from fedlightning.errors import ConfigError, EnvironmentFailure
from fedlightning.results.html import table
from tests.toys import CLASSES, FEATURES, examples, fit, net, same, state

EVIL = "<img src=x onerror=alert(1)>"


class Own(FederatedModule):
    def __init__(self, width=5):
        super().__init__(lr=0.1)
        self.body, self.head = nn.Linear(FEATURES, width), nn.Linear(width, CLASSES)


def named():
    return ClientDatasets(
        train={name: examples(8, at) for at, name in enumerate(["mayo", "charite", EVIL])},
        test={name: examples(4, 100 + at) for at, name in enumerate(["mayo", "charite", EVIL])},
        num_classes=CLASSES, batch_size=4,
    )  # fmt: skip


@pytest.fixture
def trained(tmp_path):
    callbacks = [PersonalizationCallback(epochs=2, lr=0.5)]
    return fit(
        net(module=Own, width=6), FedBABU(), rounds=2, folder=tmp_path, callbacks=callbacks,
        datamodule=named(),
    )  # fmt: skip


def test_a_run_says_what_it_was(trained):
    run = Run.of(trained)
    assert (run.algorithm, run.seed, run.main_metric.name) == ("FedBABU", 0, "acc")
    assert list(run.frame("metrics")["round"]) == [0, 1]
    assert list(run.frame("clients")["client_name"]) == ["mayo", "charite", EVIL]
    assert run.config["federation"]["algorithm"]["class_path"] == "fedlightning.FedBABU"


def test_numbers_in_frames_are_those_of_the_run_to_the_last_bit(trained):
    last = float(trained.callback_metrics["personalized/acc"])
    assert Run.of(trained).frame()["personalized/acc"].iloc[-1] == last


def test_personal_models_made_later_are_those_of_the_run(trained):
    folder = Run.of(trained).folder
    run = Run(folder, module=net(seed=9, module=Own, width=6), data=named())
    again = run.personalize(clients=["charite", 0])
    before = run.frame("clients").set_index("client_id")
    after = again.frame("clients").set_index("client_id")
    assert list(after.index) == [0, 1]
    assert after.equals(before.loc[[0, 1]])
    assert same(live_state(again.model("charite")), live_state(run.model(1)))
    assert again.folder != run.folder


def test_what_is_made_of_a_run_leaves_the_program_as_it_was(trained, monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    run = Run.of(trained)
    module = trained.lightning_module
    before, generator = state(module), torch.get_rng_state()
    run.personalize(clients=[0])
    assert same(state(module), before)
    assert torch.equal(torch.get_rng_state(), generator)
    assert os.environ["PL_GLOBAL_SEED"] == "7"


def test_deterministic_algorithms_are_the_runs_alone(tmp_path):
    built = fit(net(module=Own), FedBABU(), folder=tmp_path, datamodule=named(), deterministic=True)
    torch.use_deterministic_algorithms(False)
    os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)
    Run.of(built).personalize(clients=[0])
    assert not torch.are_deterministic_algorithms_enabled()
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ


def test_a_model_is_exported_by_its_clients_name(trained, tmp_path):
    from safetensors.torch import load_file

    run = Run.of(trained)
    path = run.export("charite", tmp_path / "charite.safetensors")
    assert same(load_file(path), live_state(run.model("charite")))
    with pytest.raises(ConfigError, match="Did you mean 'charite'"):
        run.export("charit", tmp_path / "other.pt")


def test_without_the_objects_it_says_which_are_missing(trained):
    run = Run(Run.of(trained).folder)
    with pytest.raises(ConfigError, match=r"data\.train was a dict of 3 tuples.*pass data=\.\.\."):
        run.personalize()
    assert run.model().head.in_features == 6  # Own stands in a file that can be imported


def test_a_folder_is_not_trusted_with_objects(trained, tmp_path):
    class Harm:
        def __reduce__(self):
            return open, (str(tmp_path / "harmed"), "w")

    folder = Run.of(trained).folder
    (folder / "data.pkl").write_bytes(pickle.dumps(Harm()))
    for suffix in ("pkl", "pickle", "npy", "pt"):
        assert not [p for p in folder.rglob(f"*.{suffix}") if p.name != "data.pkl"]
    Run(folder)._repr_html_()
    assert not (tmp_path / "harmed").exists()


@pytest.mark.pictures
def test_figures_are_drawn_from_the_folder_and_shown_by_notebooks(trained):
    from matplotlib.figure import Figure

    run = Run.of(trained)
    for name in ("curves", "clients", "partition"):
        figure = run.figure(name)
        assert isinstance(figure, Figure)
        assert figure._repr_png_().startswith(b"\x89PNG")
    with pytest.raises(ConfigError, match="Did you mean 'clients'"):
        run.figure("client")


@pytest.mark.pictures
def test_the_page_in_a_notebook_has_results_and_pictures(trained):
    run = Run.of(trained)
    page = run._repr_html_()
    mean = run.frame("clients")["acc_after"].mean()
    assert f"{100 * mean:.1f} %" in page
    assert page.count("data:image/png;base64,") == 2
    assert str(run.folder.parents[2]) not in page  # a home is nobody's business


def test_names_cannot_write_into_a_page(trained):
    page = Run.of(trained)._repr_html_()
    assert "<img src=x" not in page
    cells = table(["client", "acc"], [[EVIL, "1"]])
    assert EVIL not in cells
    assert html.escape(EVIL) in cells
    assert re.findall(r"<(\w+)", cells) == ["table", "tr", "th", "th", "tr", "td", "td"]


def test_a_folder_without_a_run_or_with_several_is_refused(trained, tmp_path):
    assert Run(tmp_path / "lightning_logs").folder == Run.of(trained).folder
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="no run there"):
        Run(tmp_path / "empty")
    fit(net(module=Own, width=6), FedBABU(), rounds=1, folder=tmp_path, datamodule=named())
    with pytest.raises(ConfigError, match=r"2 runs are there"):
        Run(tmp_path)


def test_what_personalize_leaves_beside_a_run_is_not_the_run(trained, tmp_path):
    run = Run.of(trained)
    again = run.personalize(clients=[0])
    assert again.folder.parent == run.folder.parent
    assert Run(tmp_path).folder == Run(run.folder).folder == run.folder
    assert Run(again.folder).folder == again.folder


def test_a_table_that_is_not_there_is_named(trained):
    with pytest.raises(ConfigError, match=r"no table 'client'.*Did you mean 'clients'"):
        Run.of(trained).frame("client")


def test_without_pandas_the_message_names_the_extra(trained, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(EnvironmentFailure, match=r"pip install 'fedlightning\[table\]'"):
        Run.of(trained).frame()
