"""The files and folders of a run are spelled out in one place."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from fedlightning.storage import run_layout

PACKAGE = Path(run_layout.__file__).parents[1]
NAMES = {value for name, value in vars(run_layout).items() if name.isupper()}
FILES = {name for name in NAMES if "." in name}
FOLDERS = NAMES - FILES  # words that mean something else, too, where they are not part of a path


def text_of(node: ast.AST) -> str:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def spelled_out(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield line and text of names of a run folder; prose with such a name in it is none."""
    for node in ast.walk(tree):
        text = text_of(node)
        if not set(text) & {" ", "\n"} and FILES & set(text.split("/")):
            yield node.lineno, text
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
            operands = [node.left, node.right]
        elif isinstance(node, ast.Compare):
            operands = [node.left, *node.comparators]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            operands = node.args if node.func.id == "Path" else []
        else:
            continue
        for operand in operands:
            if text_of(operand) in FOLDERS:
                yield operand.lineno, text_of(operand)


def test_the_names_of_a_run_folder_are_those_that_other_programs_rely_on():
    expected = """
        config.yaml hparams.yaml metrics.csv rounds.csv curves.png clients.csv clients.png
        timeline.csv timeline.png forgetting.png
        influence influence.csv influence.png leave_one_out.csv leave_one_out.png
        finetuning.csv finetuning.png partition.json
        partition.csv partition.png predictions.csv checkpoints last.ckpt previous.ckpt
        model.safetensors privacy.json private_steps.csv continued.json ended.json
        personal personalized index.json .personalized.new .personalized.old
    """
    assert set(expected.split()) == NAMES


def test_no_other_file_spells_them_out():
    found = [
        f"{path.relative_to(PACKAGE)}:{line} {text!r}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if path != Path(run_layout.__file__)
        for line, text in spelled_out(ast.parse(path.read_text()))
    ]
    assert not found, "\n".join(found)


def test_a_name_that_is_spelled_out_is_found():
    source = (
        'a = run / "personal"; b = f"*/{x}/metrics.csv"; c = path.name == "checkpoints"; '
        'd = "personalized"; e = "see metrics.csv"; f = Path(run, "checkpoints")'
    )
    assert sorted(text for _, text in spelled_out(ast.parse(source))) == [
        "/metrics.csv", "checkpoints", "checkpoints", "personal",
    ]  # fmt: skip
