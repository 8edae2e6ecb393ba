"""A page for each algorithm: formula, picture, how to run it, measured effect."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import yaml

from fedlightning import algorithms
from fedlightning.algorithms import Algorithm, Composite, ServerData
from fedlightning.callbacks import ClientInfluence
from fedlightning.federation import Cyclic
from website.docstrings import markdown_of, sections
from website.measured import measured, tables
from website.pictures import picture

__all__ = ["algorithm_classes", "algorithm_pages", "slug"]

_OTHERS = (
    (ClientInfluence, "Fed-Influence", "An observer of any algorithm, as a callback."),
    (Cyclic, "Cyclic weight transfer", "A schedule beside any algorithm."),
)
_ABOVE = "How they compose, and how to write one: [algorithms](../algorithms.md)."


def algorithm_classes() -> list[type[Algorithm]]:
    """Return the shipped algorithms, by name."""
    found = [getattr(algorithms, name) for name in algorithms.__all__]
    kinds = [kind for kind in found if isinstance(kind, type) and issubclass(kind, Algorithm)]
    named = [kind for kind in kinds if kind not in (Algorithm, Composite, ServerData)]
    return sorted(named, key=lambda kind: kind.__name__.lower())


def algorithm_pages(root: Path) -> Iterator[tuple[str, str, str]]:
    """Yield path, title and Markdown of the pages, the overview first.

    Args:
        root: The repository.
    """
    results = tables(root / "docs" / "results.md")
    kept = _kept(root / "README.md")
    pages = []
    lines = ["# Algorithms one by one", "", _ABOVE, "", "| | in a sentence |", "|---|---|"]
    for kind in algorithm_classes():
        title, text = kind.__name__, _page(kind, kept, results, root)
        pages.append((f"algorithms/{slug(kind)}.md", title, text))
        first = markdown_of(sections(inspect.getdoc(kind) or "")[""].splitlines()[0])
        lines.append(f"| [{title}]({slug(kind)}.md) | {first} |")
    for kind, title, note in _OTHERS:
        said = sections(inspect.getdoc(kind) or "")
        body = [f"# {title}", "", note, "", markdown_of(said[""]), "", "## Measured", ""]
        pages.append((f"algorithms/{slug(kind)}.md", title, "\n".join(
            [*body, measured(title, results), "", *_settings(kind)])))  # fmt: skip
        lines.append(f"| [{title}]({slug(kind)}.md) | {note} |")
    yield "algorithms/index.md", "One by one", "\n".join(lines) + "\n"
    yield from pages


def slug(kind: type) -> str:
    """Return the name of an algorithm's page."""
    return kind.__module__.rpartition(".")[2] if _alone(kind) else kind.__name__.lower()


def _alone(kind: type) -> bool:
    module = kind.__module__
    return sum(other.__module__ == module for other in algorithm_classes()) == 1


def _page(
    kind: type[Algorithm],
    kept: dict[str, str],
    results: dict[str, list[list[str]]],
    root: Path,
) -> str:
    said = sections(inspect.getdoc(kind) or "")
    parts = [f"# {kind.__name__}", "", markdown_of(said[""]), ""]
    drawn = picture(kind(), kept.get(kind.__name__, ""))
    parts += [f'<div class="formula">{drawn}</div>', ""]
    options = _recipe(kind, root) or f"quickstart.yaml --federation.algorithm={kind.__name__}"
    command = f"python -m fedlightning fit --config {options}"
    parts += ["## Run it", "", "```bash", command, "```", ""]
    parts += ["## Measured", "", measured(kind.__name__, results), ""]
    if "Source" in said:
        parts += ["## Source", "", markdown_of(said["Source"]), ""]
    return "\n".join([*parts, *_settings(kind)])


def _settings(kind: type) -> list[str]:
    whole = f"{kind.__module__}.{kind.__qualname__}"
    return ["## Settings", "", f"::: {whole}", "    options:", "      heading_level: 3",
            "      show_root_heading: true", "      members: false", ""]  # fmt: skip


def _kept(readme: Path) -> dict[str, str]:
    """Return what clients keep, from the README's table, by algorithm."""
    rows = re.findall(r"^\| (`[^|]*) \|[^|]*\|[^|]*\| ([^|]*) \|", readme.read_text("utf-8"), re.M)
    return {
        name: text.strip().replace("`", "") for names, text in rows
        for name in re.findall(r"`(\w+)", names)
    }  # fmt: skip


def _recipe(kind: type[Algorithm], root: Path) -> str:
    """Return the shortest recipe that names an algorithm, as ``--config`` finds it."""
    found = []
    for path in sorted((root / "configs").glob("*.yaml")) + sorted(
        (root / "configs" / "algorithms").glob("*.yaml")
    ):
        federation = yaml.safe_load(path.read_text("utf-8")).get("federation") or {}
        named = federation.get("algorithm", "FedBABU")
        named = named.get("class_path") if isinstance(named, dict) else named
        plain = "schedule" not in federation and "privacy" not in federation
        if str(named).rpartition(".")[2] == kind.__name__ and (plain or kind.__name__ == "PersAFL"):
            found.append(path.relative_to(root / "configs").as_posix())
    quick = "quickstart.yaml"
    return quick if quick in found else min(found, key=len, default="")
