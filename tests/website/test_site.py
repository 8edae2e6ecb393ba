"""What the site makes: pictures and measured effects of algorithms, counted tasks."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from fedlightning import SCAFFOLD, Algorithm, FedBABU, FedPer, algorithms
from fedlightning.algorithms import FedBN, FedRes
from website.measured import measured, tables
from website.pictures import picture

ROOT = Path(__file__).parents[2]
STORIES = ROOT / "benchmarks" / "peers" / "stories"


@pytest.mark.parametrize(
    ("algorithm", "text"),
    [
        (FedBABU(), "clients train body, norm and share body, norm;"),
        (FedPer(), "clients train body, norm, head and share body, norm;"),
        (FedBN(), "clients train body, norm, head and share body, head;"),
        (FedRes(), "clients train shared network, private network and share shared network;"),
        (SCAFFOLD(), "also ↓ scaffold; ↑ scaffold (mean);"),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_a_picture_shows_what_is_trained_and_shared(algorithm, text):
    assert text in picture(algorithm, "")


def test_measured_effects_are_the_rows_of_the_results():
    results = tables(ROOT / "docs" / "results.md")
    text = measured("SCAFFOLD", results)
    row = next(
        line
        for line in (ROOT / "docs" / "results.md").read_text().splitlines()
        if line.startswith("| SCAFFOLD ")
    )
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert f"|{'|'.join(cells)}|" in text
    assert measured("nothing", results) == ""
    kinds = [getattr(algorithms, name) for name in algorithms.__all__]
    shipped = [k for k in kinds if isinstance(k, type) and issubclass(k, Algorithm)]
    names = {kind.__name__ for kind in shipped} - {"Algorithm", "Composite", "ServerData"}
    assert {name for name in names if not measured(name, results)} == set()
    assert "FedVI: new clients are served at once" in measured("FedVI", results)


def test_formulas_become_mathml():
    pytest.importorskip("latex2mathml")
    from website.docstrings import markdown_of

    text = markdown_of("A mean :math:`x_i` of :class:`~a.b.C`, see https://arxiv.org/abs/1.")
    assert "<msub>" in text
    assert "of `C`, see <https://arxiv.org/abs/1>." in text


def stories(name: str) -> dict:
    return runpy.run_path(str(STORIES / name), run_name="__stories__")


def test_lines_with_code_are_counted():
    code_lines = stories("count.py")["code_lines"]
    text = '"""A title."""\n\n# a comment\nx = [\n    1,\n]\n\n'
    text += 'def f():\n    """Say."""\n    return x\n'
    assert code_lines(text) == 5  # three of x, def, return


def test_the_tasks_end_with_each_hospital_by_name(monkeypatch, tmp_path):
    pytest.importorskip("pandas")
    stories("data.py")["main"]()
    runpy.run_path(str(STORIES / "ours_resume.py"))
    (first,) = tmp_path.rglob("clients.csv")
    before = first.read_text()
    runpy.run_path(str(STORIES / "ours_resume.py"))  # nothing is left to do
    (again,) = tmp_path.rglob("clients.csv")
    assert again.read_text() == before
    assert all(name in before for name in ("charite", "mayo", "ucla"))


def test_the_table_of_the_docs_is_the_count(capsys):
    stories("count.py")["main"]()
    assert capsys.readouterr().out.strip() in (ROOT / "docs" / "peers.md").read_text()
