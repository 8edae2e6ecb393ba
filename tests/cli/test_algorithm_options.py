"""Algorithms by name on the command line: settings, compositions, mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from fedlightning.__main__ import main
from fedlightning.storage.checkpoint_reader import loop_state
from tests.toys import client_states

QUICK = ["--trainer.max_epochs=1", "--trainer.enable_progress_bar=false"]


def config(version):
    return yaml.safe_load((version / "config.yaml").read_text())["federation"]["algorithm"]


def weights(version):
    return torch.load(version / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def test_an_algorithm_is_named_and_set_in_the_short_form(run, version):
    assert run("B", "--federation.algorithm=FedProx", "--federation.algorithm.mu=0.1").code == 0
    found = config(version)
    assert found["class_path"] == "fedlightning.FedProx"
    assert found["init_args"]["mu"] == 0.1


@pytest.mark.parametrize("way", ["option", "file"])
def test_another_algorithm_does_not_inherit_the_default_ones_settings(run, write, version, way):
    write("avg.yaml", "federation: {algorithm: FedAvg}")
    words = ["--federation.algorithm=FedAvg"] if way == "option" else ["--config=avg.yaml"]
    base = {"seed_everything": 0, **yaml.safe_load(Path("ok.yaml").read_text())}
    del base["federation"]["algorithm"]
    write("ok.yaml", yaml.safe_dump(base))
    assert run("B", *words).code == 0
    assert config(version)["init_args"]["weights"] is None


def test_settings_of_the_default_algorithm_need_no_name(run, write, version):
    base = yaml.safe_load(Path("ok.yaml").read_text())
    del base["federation"]["algorithm"]
    write("ok.yaml", yaml.safe_dump(base))
    assert run("B", "--federation.algorithm.weights=examples").code == 0
    assert config(version)["class_path"] == "fedlightning.FedBABU"
    assert config(version)["init_args"]["weights"] == "examples"


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["FedProx", "mu=-1"], "algorithm.mu must be a finite number >= 0, got -1"),
        (["FedPrx"], "'FedPrx' is not a known Algorithm. Did you mean 'FedProx'?"),
        (["Scaffold"], "'Scaffold' is not a known Algorithm. Did you mean 'SCAFFOLD'?"),
        (["FedProx", "muu=1"], "federation.algorithm.muu: FedProx has no setting 'muu'"),
        (["APFL", "alpha=2"], "algorithm.alpha must be in [0, 1], got 2"),
        (["PerFedAvg", "variant=second"], "variant"),
        (["FedAdam", "beta1=1"], "algorithm.beta1 must be in [0, 1), got 1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_end_with_2_and_name_the_setting(run, version, words, error):
    name, *settings = words
    options = [f"--federation.algorithm.{setting}" for setting in settings]
    ended = run("B", f"--federation.algorithm={name}", *options)
    assert ended.code == 2
    assert error in ended.error
    assert not version.exists()


COMPOSED = """
federation:
  algorithm:
    class_path: Composite
    init_args:
      algorithms: [FedBABU, {class_path: FedProx, init_args: {mu: 0.1}}]
"""


def test_a_composition_runs_on_the_quickstart_and_its_config_runs_again(run, write, version):
    write("both.yaml", COMPOSED)
    assert run("fit", "--config=quickstart.yaml", "--config=both.yaml", *QUICK).code == 0
    members = config(version)["init_args"]["algorithms"]
    assert [m["class_path"] for m in members] == ["fedlightning.FedBABU", "fedlightning.FedProx"]
    assert members[1]["init_args"]["mu"] == 0.1
    assert main(["fit", f"--config={version / 'config.yaml'}"]) == 0
    again = version.with_name("version_1")
    first, second = weights(version), weights(again)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert config(again) == config(version)


@pytest.mark.parametrize(
    ("members", "error"),
    [
        ("[FedBABU, FedPer]", "FedBABU and FedPer do not go together: train is 'body' for the one"),
        ("[FedBABU]", "Composite needs two or more algorithms, got 1"),
        ("[FedBABU, FedPrx]", "Did you mean 'FedProx'"),
    ],
)
def test_a_composition_that_cannot_be_ends_with_2(run, write, members, error):
    write("both.yaml", COMPOSED.partition("[")[0] + members)
    ended = run("B", "--config=both.yaml")
    assert ended.code == 2
    assert error in ended.error


OWN = """
federation:
  algorithm:
    class_path: Algorithm
    init_args:
      train: body
      share: body
      local: [{class_path: Proximal, init_args: {mu: 0.1}}]
      server: {class_path: ServerSGD, init_args: {lr: 0.5}}
"""


def test_an_algorithm_is_put_together_from_its_parts(run, write, version):
    write("own.yaml", OWN)
    assert run("B", "--config=own.yaml").code == 0
    assert main(["fit", f"--config={version / 'config.yaml'}"]) == 0
    first, second = weights(version), weights(version.with_name("version_1"))
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("name", ["SCAFFOLD", "PFedMe", "APFL", "FedRoD", "Ditto", "PerFedAvg"])
@pytest.mark.slow
def test_a_run_goes_on_from_its_last_checkpoint(run, version, name):
    words = ["B", f"--federation.algorithm={name}", "--model.lr_milestones=[]"]
    assert run(*words, "--trainer.max_epochs=1").code == 0
    assert run(*words, "--trainer.max_epochs=2", "--ckpt_path=last").code == 0
    assert run(*words, "--trainer.max_epochs=2").code == 0
    resumed, whole = (
        torch.load(
            version.with_name(f"version_{n}") / "checkpoints" / "last.ckpt", weights_only=True
        )
        for n in (0, 1)  # a resumed run goes on in its folder
    )
    extra = [loop_state(c)["extra"] for c in (resumed, whole)]
    for one, other in (
        (resumed["state_dict"], whole["state_dict"]),
        (extra[0]["server"], extra[1]["server"]),
        (client_states(resumed), client_states(whole)),
    ):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)
