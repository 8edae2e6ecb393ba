import ast
import subprocess
import sys
from pathlib import Path

import pytest

import fedlightning.datamodules as package

FILES = sorted(Path(package.__file__).parent.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=[path.name for path in FILES])
def test_heavy_packages_are_imported_inside_functions_only(path):
    imported = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(str(node.module).split(".")[0])
    assert not imported & {"sklearn", "torchvision", "matplotlib", "scipy"}


def test_importing_the_package_imports_no_sklearn():
    code = "import sys, fedlightning.datamodules; sys.exit('sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_folder_of_a_clone_has_the_librarys_names():
    import datamodules

    for name in datamodules.__all__:
        assert getattr(datamodules, name) is getattr(package, name)
