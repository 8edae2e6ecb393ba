"""Two runs are the same only if every bit of them is."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch

from benchmarks import old_against_new
from benchmarks.old_against_new import CASES, CONFIGS, Failed, checkout, compare

WEIGHTS = {"body": torch.tensor([1.0, 0.0]), "scale": torch.tensor(float("nan"))}
METRICS = "round,acc,loss\n0,0.5,1.25\n1,0.75,\n"


def run(folder: Path, weights=WEIGHTS, clients="client_id,acc\n0,0.5\n", metrics=METRICS) -> Path:
    (folder / "checkpoints").mkdir(parents=True)
    torch.save({"state_dict": weights}, folder / "checkpoints" / "last.ckpt")
    (folder / "clients.csv").write_text(clients)
    (folder / "metrics.csv").write_text(metrics)
    return folder


@pytest.fixture
def old(tmp_path):
    return run(tmp_path / "old")


def test_a_copy_is_the_same(old, tmp_path):
    assert compare(old, run(tmp_path / "new")) == ([], [])


@pytest.mark.parametrize(
    "body",
    [torch.tensor([1.0, -0.0]), torch.tensor([1.0, 1e-45]), torch.tensor([[1.0, 0.0]])],
    ids=["the sign of a zero", "the last bit", "another shape"],
)
def test_tensors_that_are_not_the_same_bits_are_named(old, tmp_path, body):
    new = run(tmp_path / "new", weights={**WEIGHTS, "body": body})
    assert compare(old, new) == (["weights (body)"], [])


def test_a_tensor_of_one_side_alone_differs(old, tmp_path):
    new = run(tmp_path / "new", weights={"body": WEIGHTS["body"], "more": WEIGHTS["scale"]})
    assert compare(old, new) == (["weights (scale, more)"], [])


def test_of_many_names_the_first_are_said(old, tmp_path):
    new = run(tmp_path / "new", weights={**WEIGHTS, **dict.fromkeys("abcdef", WEIGHTS["scale"])})
    assert compare(old, new) == (["weights (a, b, c, d and 2 more)"], [])


def test_a_client_that_differs_in_its_last_digit_differs(old, tmp_path):
    assert compare(old, run(tmp_path / "new", clients="client_id,acc\n0,0.6\n"))[0] == [
        "clients.csv"
    ]


def test_a_new_column_is_told_and_is_no_difference(old, tmp_path):
    new = run(tmp_path / "new", metrics="round,acc,f1,loss\n0,0.5,1,1.25\n1,0.75,1,\n")
    assert compare(old, new) == ([], ["metrics.csv of new alone has f1"])


@pytest.mark.parametrize(
    ("metrics", "said"),
    [
        ("round,acc,loss\n0,0.5,1.25\n1,0.75,0.0\n", "metrics.csv (loss)"),
        ("round,acc,loss\n0,0.5,1.25\n", "metrics.csv (round, acc, loss)"),
        ('round,acc,loss\n0,0.5,"1.25"\n1,0.75,\n', "metrics.csv (the same cells, other bytes)"),
    ],
    ids=["a cell", "a row less", "quotes"],
)
def test_columns_that_differ_are_named(old, tmp_path, metrics, said):
    assert compare(old, run(tmp_path / "new", metrics=metrics)) == ([said], [])


def test_a_file_that_is_missing_differs(old, tmp_path):
    new = run(tmp_path / "new")
    (new / "clients.csv").unlink()
    assert compare(old, new) == (["new has no clients.csv"], [])


def test_every_config_is_compared():
    assert {case.config for case in CASES.values()} == set(CONFIGS)


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A repository of one commit, in which the script seems to lie."""
    clone = tmp_path / "clone"
    git(tmp_path, "init", "--quiet", "clone")
    (clone / "a.py").write_text("")
    git(clone, "add", "a.py")
    git(clone, "-c", "user.name=a", "-c", "user.email=a@b.example", "commit", "--message=first")
    monkeypatch.setattr(old_against_new, "HERE", clone)
    return clone


def git(folder, *arguments):
    return subprocess.run(
        ["git", "-C", str(folder), *arguments], check=True, capture_output=True, text=True
    ).stdout


def test_an_unknown_commit_is_named(clone, tmp_path):
    with (
        pytest.raises(Failed, match="cannot check out no-such-commit"),
        checkout("no-such-commit", tmp_path / "tree"),
    ):
        pass


def test_the_old_tree_is_removed_after_an_error(clone, tmp_path):
    tree = tmp_path / "tree"
    with pytest.raises(IsADirectoryError), checkout("HEAD", tree):
        tree.read_text()
    assert not tree.exists()
    assert git(clone, "worktree", "list").count("\n") == 1
