"""The package from outside: quick and harmless to import, one name in the wheel."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import fedlightning

ROOT = Path(__file__).parents[1]

SIDE_EFFECTS = """
import os, random, signal, sys, warnings
import numpy, torch, pytorch_lightning, torchmetrics, jsonargparse.typing
def globals_():
    return (
        random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state().tolist(),
        torch.get_num_threads(), torch.get_default_dtype(), dict(os.environ), os.getcwd(),
        list(warnings.filters), signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM),
        sys.path[:],
    )
before = globals_()
import fedlightning
for name in fedlightning.__all__: getattr(fedlightning, name)
import fedlightning.models, fedlightning.datamodules, fedlightning.callbacks
assert globals_() == before, [a for a, b in zip(globals_(), before) if a != b]
"""


def python(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT
    ).stdout


def test_importing_everything_changes_no_global():
    python(SIDE_EFFECTS)


def test_importing_the_package_imports_no_torch():
    python("import sys, fedlightning; assert 'torch' not in sys.modules; fedlightning.__version__")


def test_public_names_are_where_they_are_said_to_be():
    for name in fedlightning.__all__:
        assert getattr(fedlightning, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        _ = fedlightning.Nonsense


def test_type_checkers_see_the_same_names():
    stub = ast.parse((ROOT / "fedlightning" / "__init__.pyi").read_text())
    imports = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
    assert sorted(alias.asname for node in imports for alias in node.names) == fedlightning.__all__
    for node in imports:
        for alias in node.names:
            defined = getattr(importlib.import_module(node.module), alias.name)
            assert defined is getattr(fedlightning, alias.asname)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT],
        check=True, capture_output=True,
    )  # fmt: skip
    return next(folder.glob("*.whl"))


def test_the_wheels_only_top_level_name_is_the_packages(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    top = {name.split("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == {"fedlightning"}


def test_the_wheel_brings_recipes_and_types(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    configs = ROOT / "configs"
    recipes = {path.relative_to(configs).as_posix() for path in configs.rglob("*.yaml")}
    assert recipes
    assert {
        name.removeprefix("fedlightning/configs/") for name in names if "configs" in name
    } >= recipes
    assert {"fedlightning/py.typed", "fedlightning/__init__.pyi"} <= set(names)
