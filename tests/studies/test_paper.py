"""Tables and figures for a paper."""

import re
import shutil
import subprocess
from itertools import pairwise

import numpy as np
import pytest

from fedlightning.__main__ import main
from fedlightning.errors import ConfigError
from fedlightning.studies.rankings import rank_table
from fedlightning.studies.report.figure_svg import styles_for
from fedlightning.studies.report.learning_points import curve_of
from fedlightning.studies.report.paper import PaperOptions, write_paper
from fedlightning.studies.report.paper_figures import (
    COLUMN,
    curves_paper_figure,
    paper_style,
    rank_diagram,
    save_paper_figure,
)
from fedlightning.studies.report.paper_tables import Number, PaperTable, results_paper_table
from fedlightning.studies.results import collect
from fedlightning.studies.seed_tests import seed_tests

NAMES = ["FedAvg", "Fed_Prox & 50% {a}|#1", "FedBABU"]


@pytest.fixture
def study(make_run, tmp_path):
    return fill(make_run, tmp_path, ("cohort_size=5", "cohort_size=10"))


@pytest.fixture
def plain(make_run, tmp_path):
    return fill(make_run, tmp_path, ("",))


def fill(make_run, folder, conditions):
    for condition in conditions:
        for seed in (0, 1, 2):
            for at, name in enumerate(NAMES):
                mean = 0.5 + 0.1 * at + (0.02 * seed if at else 0.0)
                make_run(
                    name, seed, [mean - 0.1, mean + 0.1], condition=condition, algorithm="FedAvg",
                    metrics="round,train/loss,global/acc\n0,2,0.25\n1,1,0.5\n2,1,0.75\n",
                )  # fmt: skip
    return folder


def write(folder, **options):
    collection = collect([folder], order=NAMES)
    baselines = dict.fromkeys(collection.conditions, "FedAvg")
    tests = [
        test
        for condition in collection.conditions
        for test in seed_tests(collection.of(condition), "FedAvg")
    ]
    return write_paper(folder, collection, tests, baselines, PaperOptions(**options))


def cells(line):
    return [cell.strip() for cell in re.split(r"(?<!\\)&", line.removesuffix(r" \\"))]


def test_a_table_in_latex_has_one_number_of_columns_and_nothing_unescaped(study):
    assert len(write(study, tables=("latex", "markdown"))) == 2 * 5
    files = sorted(path.name for path in (study / "tables").glob("*.tex"))
    assert files == ["conditions.tex", "differences_cohort_size=10.tex",
                     "differences_cohort_size=5.tex", "results_cohort_size=10.tex",
                     "results_cohort_size=5.tex"]  # fmt: skip
    for name in files:
        text = (study / "tables" / name).read_text()
        (columns,) = re.findall(r"\\begin\{tabular\}\{([lr]+)\}", text)
        rows = re.findall(r"^ {4}(.*\\\\)$", text, re.M)
        assert len(rows) >= 3
        assert {len(cells(row)) for row in rows} == {len(columns)}
        for kind in ("table", "tabular"):
            assert text.count(rf"\begin{{{kind}}}") == text.count(rf"\end{{{kind}}}") == 1
        order = [text.index(rf"\{rule}rule") for rule in ("top", "mid", "bottom")]
        assert order == sorted(order)
        body = text.split("\n", 1)[1]  # the first line is a comment
        assert not re.search(r"(?<!\\)[%#]|(?<!\\)_", re.sub(r"\\label\{.*?\}", "", body))
        assert body.count("{") - body.count(r"\{") == body.count("}") - body.count(r"\}")


def test_no_row_begins_with_what_latex_reads_as_an_option():
    names = ["[A]", "*B", " [2pt]", "plain [x]*", "[C]"]
    table = PaperTable("a", "c", ["[h]", "[acc]"], [[name, Number("[1, 2]")] for name in names])
    text = table.latex()
    assert not re.search(r"(\\\\|\\[a-z]*rule)\s*[\[*]", text)
    rows = [cells(line)[0] for line in text.splitlines() if line.endswith(r"\\")]
    assert rows == ["{[}h]", "{[}A]", "{*}B", "{[}2pt]", "plain [x]*", "{[}C]"]


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no LaTeX")
def test_tables_compile(study):
    write(study, tables=("latex",))
    inputs = "".join(rf"\input{{{path}}}" for path in sorted((study / "tables").glob("*.tex")))
    (study / "paper.tex").write_text(
        rf"\documentclass{{article}}\usepackage{{booktabs}}\begin{{document}}{inputs}\end{{document}}"
    )
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    done = subprocess.run(command, cwd=study, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]


def test_numbers_of_a_table_by_hand(study):
    groups = collect([study], order=NAMES).of("cohort_size=5")
    table = results_paper_table(groups, "results")
    at = list(table.header).index("after")
    # FedBABU: 70, 72, 74: mean 72, standard deviation 2, t(0.975, 2) 2 / sqrt(3) = 4.97
    assert [(row[at].text, row[at].spread) for row in table.rows] == [
        ("50.0", "0.0"), ("62.0", "2.0"), ("72.0", "2.0"),
    ]  # fmt: skip
    assert [row[at].best for row in table.rows] == [False, False, True]
    with_interval = results_paper_table(groups, "results", "ci")
    assert with_interval.rows[2][at].spread == "5.0"
    assert r"\textbf{72.0} $\pm$ 2.0" in table.latex()
    assert "**72.0** ± 2.0" in table.markdown()
    lines = table.markdown().splitlines()[2:]
    assert len({len(line) for line in lines}) == 1, "columns are aligned"
    assert r"Fed\_Prox & 50% {a}\|#1" in lines[3]


@pytest.mark.parametrize("kind", ["pdf", "svg"])
def test_figures_are_as_wide_as_a_column_and_the_same_every_time(plain, kind):
    write(plain, figures=kind)
    folder = plain / "figures"
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert sorted(first) == [f"{name}.{kind}" for name in ("clients", "curves", "ranks", "seeds")]
    for name, content in first.items():
        if kind == "pdf":
            width = float(re.search(rb"/MediaBox \[ 0 0 ([\d.]+)", content)[1])
        else:
            width = float(re.search(rb'width="([\d.]+)pt"', content)[1])
        assert width == pytest.approx(72 * COLUMN, abs=0.1), name
    write(plain, figures=kind)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == first


@pytest.mark.parametrize("names", [list("ABCD"), ["A very long name of a variant"] * 7])
def test_everything_on_a_rank_diagram_is_on_the_page(names):
    names = [f"{name} {at}" for at, name in enumerate(names)]
    rng = np.random.default_rng(0)
    figure = rank_diagram(rank_table(rng.normal(size=(5, len(names))), names))
    with paper_style():
        figure.canvas.draw()
        width, height = figure.bbox.width, figure.bbox.height
        boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert {text.get_fontsize() for text in figure.axes[0].texts} == {8.0}
    for box in boxes:
        assert -1 <= box.x0 < box.x1 <= width + 1
        assert -1 <= box.y0 < box.y1 <= height + 1
    assert not any(one.overlaps(two) for at, one in enumerate(boxes) for two in boxes[:at])


@pytest.mark.parametrize("names", [["A", "B", "C"], ["i", "l", "A very long name"], list(NAMES)])
def test_a_rank_diagram_that_is_too_narrow_says_which_width_is_not(names):
    ranking = rank_table([[1, 2, 3], [1, 3, 2]], names)
    with pytest.raises(ConfigError, match=r"--width=1 is too narrow .* at least") as refused:
        rank_diagram(ranking, 1.0)
    least = float(re.search(r"at least ([\d.]+) inches", str(refused.value))[1])
    with pytest.raises(ConfigError, match="too narrow"):
        rank_diagram(ranking, least - 0.02)
    figure = rank_diagram(ranking, least)
    with paper_style():
        figure.canvas.draw()
        boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert all(-1 <= box.x0 < box.x1 <= figure.bbox.width + 1 for box in boxes)


def test_a_width_that_is_too_small_for_a_study_is_refused(plain, capsys):
    assert main(["report", str(plain), "--figures=pdf", "--width=1.2"]) == 2
    assert re.search(r"--width=1.2 is too narrow .*at least [\d.]+ inches", capsys.readouterr().err)


def test_rounds_of_curves_are_counted_from_one(study):
    group = collect([study], order=NAMES).groups[0]
    curve = curve_of(group, "global/acc")
    assert curve.rounds.tolist() == [1, 2, 3]
    assert curve.means.tolist() == [0.25, 0.5, 0.75]
    figure = curves_paper_figure([group], styles_for(NAMES))
    (ax,) = figure.axes
    assert ax.get_xlabel() == "rounds done"
    assert ax.lines[0].get_xydata().tolist() == [[1, 25], [2, 50], [3, 75]]


def test_coinciding_curves_differ_in_dashes():
    looks = styles_for([str(at) for at in range(20)])
    assert len(set(looks.values())) == 20
    ordered = list(looks.values())
    assert all(one[1] != two[1] for one, two in pairwise(ordered))


def test_a_picture_can_have_any_width(study, tmp_path):
    ranking = rank_table([[1, 2, 3], [1, 3, 2]], ["A", "B", "C"])
    save_paper_figure(rank_diagram(ranking, 5.0), tmp_path / "a.svg", "svg")
    text = (tmp_path / "a.svg").read_text()
    assert 'width="360pt"' in text
    assert "<dc:date>" not in text


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("--tables=latx", "Did you mean 'latex'"),
        ("--figures=gif", "--figures must be one of pdf, svg, png"),
        ("--width=wide", "--width must be one of column, page, or inches"),
        ("--spread=se", "--spread must be one of sd, ci"),
    ],
)
def test_bad_options(study, word, message, capsys):
    assert main(["report", str(study), word]) == 2
    assert message in capsys.readouterr().err
    assert not (study / "report.html").exists()
