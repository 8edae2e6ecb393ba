from pathlib import Path

import pytest

from fedlightning.cli.config.recipes import (
    find_config,
    recipe_title,
    recipes_folder,
    shipped_recipes,
)
from fedlightning.errors import ConfigError


@pytest.mark.parametrize("name", ["quickstart", "quickstart.yaml", "configs/quickstart.yaml"])
def test_shipped_recipes_are_found_by_name_from_any_folder(name):
    assert find_config(name) == shipped_recipes()["quickstart.yaml"]


def test_a_file_of_ones_own_wins(tmp_path):
    (tmp_path / "quickstart.yaml").write_text("{}")
    assert find_config("quickstart") == Path("quickstart.yaml")
    assert find_config("quickstart.yaml") == Path("quickstart.yaml")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("quickstrt.yaml", "quickstrt.yaml not found: .* Did you mean 'quickstart.yaml'"),
        ("mine.yaml", "Did you mean 'mime.yaml'"),
        (".", "is a directory"),
        ("https://example.org/a.yaml", "remote configs are not read"),
        ("s3://bucket/a.yaml", "remote configs are not read"),
    ],
)
def test_a_config_that_is_none(tmp_path, name, message):
    (tmp_path / "mime.yaml").write_text("{}")
    with pytest.raises(ConfigError, match=message):
        find_config(name)


def test_the_title_is_the_first_clause_of_the_comment(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("# FedBABU on digits: 20 clients. Seconds.\nmodel: x\n")
    assert recipe_title(path) == "FedBABU on digits"
    path.write_text("model: x\n")
    assert recipe_title(path) == ""


def test_recipes_are_package_data_when_installed_and_a_folder_in_a_clone(tmp_path):
    package = tmp_path / "site-packages" / "fedlightning"
    package.mkdir(parents=True)
    foreign = tmp_path / "site-packages" / "configs"
    foreign.mkdir()
    assert recipes_folder(package) is None, "somebody else's top-level configs"
    (tmp_path / "site-packages" / "pyproject.toml").touch()
    assert recipes_folder(package) == foreign
    (package / "configs").mkdir()
    assert recipes_folder(package) == package / "configs"
