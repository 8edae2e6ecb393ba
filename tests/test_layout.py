"""The packages stand in layers: imports lead down, and no file imports itself by a detour."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1] / "fedlightning"
PUBLIC = {"__init__", "__main__"}
RE_EXPORTS = {
    "aggregation": "algorithms.aggregation",
    "compression": "federation.uplink",
    "sampling": "federation.sampling",
}
LAYERS: list[set[str]] = [
    {"errors", "_version"},
    {"core"},
    {"storage", "models", "algorithms"},
    {"privacy"},
    {"datamodules", "reporting", "federation"},
    {"engine"},
    {"personalization"},
    {"callbacks"},
    {"trainer"},
    {"cli", "deployment"},
    {"flower", "studies"},
    {"watching", "results"},
]
BELOW_IN_PART = {  # packages of the fourth and fifth layer stand on some of the third alone
    "datamodules": {"storage"},
    "reporting": {"storage"},
    "federation": {"algorithms"},
    "privacy": {"algorithms", "storage"},
}


def module_of(path: Path) -> str:
    parts = ("fedlightning", *path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_of(path): path for path in sorted(ROOT.rglob("*.py"))}


def imported_by(path: Path) -> Iterator[tuple[int, str]]:
    """Yield line and module of every import statement, wherever it stands."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "fedlightning":
                    yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            if node.module and node.module.split(".")[0] == "fedlightning":
                for alias in node.names:
                    whole = f"{node.module}.{alias.name}"
                    yield node.lineno, whole if whole in FILES else node.module


def package_of(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


def layer_of(package: str) -> int:
    return next(index for index, layer in enumerate(LAYERS) if package in layer)


def may_import(package: str, other: str) -> bool:
    if package == other:
        return True
    if layer_of(other) >= layer_of(package):
        return False
    partly = BELOW_IN_PART.get(package)
    return partly is None or layer_of(other) != 2 or other in partly


def test_every_file_stands_in_a_layer() -> None:
    packages = {package_of(module) for module in FILES} - PUBLIC - set(RE_EXPORTS)
    assert packages == set().union(*LAYERS)


def test_imports_lead_down() -> None:
    upwards = [
        f"{path.relative_to(ROOT)}:{line} imports {module}"
        for name, path in FILES.items()
        if (package := package_of(name)) not in PUBLIC and package not in RE_EXPORTS
        for line, module in imported_by(path)
        if not may_import(package, package_of(module))
    ]
    assert not upwards, "\n".join(upwards)


def test_files_make_no_circle() -> None:
    graph = {name: {m for _, m in imported_by(path)} for name, path in FILES.items()}
    done: set[str] = set()

    def circle_from(name: str, under_way: list[str]) -> list[str] | None:
        if name in under_way:
            return [*under_way[under_way.index(name) :], name]
        if name in done or name not in graph:
            return None
        for other in sorted(graph[name]):
            if (found := circle_from(other, [*under_way, name])) is not None:
                return found
        done.add(name)
        return None

    for name in graph:
        found = circle_from(name, [])
        assert found is None, " imports ".join(found)


def test_old_addresses_lead_to_the_new_ones() -> None:
    for old, new in RE_EXPORTS.items():
        modules = {module for _, module in imported_by(ROOT / f"{old}.py")}
        assert modules == {f"fedlightning.{new}"}
