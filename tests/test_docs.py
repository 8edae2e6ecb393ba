"""The documentation runs: Python blocks as they are, commands as far as their options go."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml

from fedlightning import Federation
from fedlightning.__main__ import main
from fedlightning.cli.export import read_options
from fedlightning.cli.usage import COMMANDS

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
    "command",
    commands_of("fit", "validate", "test", "predict", "personalize", "check"),
    ids=" ".join,
)
def test_commands_have_options_that_exist(command, capsys):
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


def test_every_command_of_the_docs_exists_and_has_an_example():
    used = {command[0] for command in commands()}
    assert used <= set(COMMANDS)
    assert used >= set(COMMANDS) - {"check"}


@pytest.mark.parametrize("command", commands_of("export"), ids=" ".join)
def test_exports_name_their_run(command):
    assert read_options(command[1:]).run


@pytest.mark.parametrize("command", commands_of("watch"), ids=" ".join)
def test_pages_would_be_served(command, monkeypatch, capsys):
    monkeypatch.setattr("fedlightning.watching.server.serve", lambda *_: None)
    port = [] if "--port" in command else ["--port=0"]
    assert main([*command, *port]) == 0
    assert "http://127.0.0.1:" in capsys.readouterr().out


ALL_PAGES = [*PAGES, *sorted((ROOT / "docs" / "cookbook").glob("*.md")), ROOT / "SECURITY.md"]


def anchors(page: Path) -> set[str]:
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    plain = [re.sub(r"[^\w\s-]", "", title.lower()).strip() for title in titles]
    return {re.sub(r"\s+", "-", title) for title in plain}


@pytest.mark.parametrize("page", ALL_PAGES, ids=lambda page: page.stem)
def test_anchors_of_links_exist(page):
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#([^)]+)\)", page.read_text()):
        linked = page.parent / target if target else page
        assert anchor in anchors(linked), f"{target}#{anchor}"


@pytest.mark.parametrize("page", ALL_PAGES, ids=lambda page: page.stem)
def test_files_of_the_repository_that_are_named_exist(page):
    for name in re.findall(
        r"`((?:tests|benchmarks|configs|fedlightning)/[\w/.]+)`", page.read_text()
    ):
        assert (ROOT / name).exists(), name


def extras() -> set[str]:
    text = (ROOT / "pyproject.toml").read_text()
    table = text.partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    return set(re.findall(r"^([\w-]+) = \[", table, re.MULTILINE))


@pytest.mark.parametrize("page", ALL_PAGES, ids=lambda page: page.stem)
def test_extras_that_are_named_exist_and_nothing_is_said_to_be_on_pypi(page):
    text = page.read_text()
    named = re.findall(r"\.\[([\w,-]+)\]", text) + re.findall(r"extra `([\w-]+)`", text)
    assert {name for names in named for name in names.split(",")} <= extras()
    assert not re.search(r"pip install '?fedlightning", text)


@pytest.mark.parametrize("page", ALL_PAGES, ids=lambda page: page.stem)
def test_settings_that_are_named_exist(page):
    import inspect

    from fedlightning import FederatedTrainer, datamodules

    kinds = [getattr(datamodules, name) for name in datamodules.__all__]
    of_data = {
        name
        for kind in kinds
        if inspect.isclass(kind)
        for base in inspect.getmro(kind)
        for name in (*inspect.signature(base.__init__).parameters, *vars(base))
    }
    known = {
        "federation": set(inspect.signature(Federation).parameters),
        "trainer": {
            *inspect.signature(FederatedTrainer.__mro__[1].__init__).parameters,
            *dir(FederatedTrainer),
        },
        "data": of_data,
    }
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for of, name in re.findall(r"`(federation|trainer|data)\.(?!py`)([a-z_]+)", text):
        assert name in known[of], f"{of}.{name}"


def test_the_site_has_every_page():
    loader = type("Loader", (yaml.SafeLoader,), {})
    nav = yaml.load((ROOT / "mkdocs.yml").read_text(), loader)["nav"]
    listed = set(re.findall(r"[\w/]+\.md", str(nav)))
    pages = {path.name for path in (ROOT / "docs").glob("*.md")}
    assert listed == pages | {"CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"}
