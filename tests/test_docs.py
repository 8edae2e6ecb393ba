"""The documentation runs: Python blocks as they are, commands as far as their options go."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml

from fedlightning.__main__ import main
from fedlightning.cli.export import read_options

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def commands() -> list[list[str]]:
    lines = [
        line for page in PAGES for block in blocks(page, "bash") for line in block.splitlines()
    ]
    return [
        shlex.split(line, comments=True)[3:]
        for line in lines
        if line.startswith("python -m fedlightning")
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_python_examples_run_in_order(page):
    source = "\n".join(blocks(page, "python"))
    exec(compile(source, str(page), "exec"), {"__name__": "__docs__"})


def commands_of(*names: str) -> list[list[str]]:
    return [command for command in commands() if command[0] in names]


@pytest.mark.parametrize(
    "command", commands_of("fit", "validate", "test", "predict", "check"), ids=" ".join
)
def test_commands_have_options_that_exist(command, capsys):
    if command[0] == "export":
        assert read_options(command[1:]).run
        return
    if "--print_config" not in command:
        command = [*command, "--print_config"]
    assert main(command) == 0
    assert "federation:" in capsys.readouterr().out


@pytest.mark.parametrize("command", commands_of("compare"), ids=" ".join)
def test_studies_would_be_accepted(command, capsys):
    assert main([*command, "--dry-run"]) == 0
    assert "to be run" in capsys.readouterr().out


@pytest.mark.parametrize("command", commands_of("tune"), ids=" ".join)
def test_searches_would_be_accepted(command, capsys):
    assert main([*command, "--dry-run"]) == 0
    assert "trials of each variant" in capsys.readouterr().out


@pytest.mark.parametrize("command", commands_of("report"), ids=" ".join)
def test_reports_lack_nothing_but_their_runs(command, capsys):
    assert main(command) == 2
    assert "no such folder" in capsys.readouterr().err


@pytest.mark.parametrize("command", commands_of("influence"), ids=" ".join)
def test_replays_lack_nothing_but_their_run(command, capsys):
    assert main(command) == 2
    assert "no such folder" in capsys.readouterr().err


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_config_snippets_are_yaml(page):
    for block in blocks(page, "yaml"):
        assert isinstance(yaml.safe_load(block), dict)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_within_the_project_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target
