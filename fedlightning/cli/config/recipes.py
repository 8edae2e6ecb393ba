"""Find config files: the user's own, and the recipes of the package."""

from __future__ import annotations

from pathlib import Path

from fedlightning.errors import ConfigError, did_you_mean

__all__ = ["find_config", "recipe_title", "recipes_folder", "shipped_recipes", "shipped_studies"]

_SUFFIXES = (".yaml", ".yml")
_STUDIES = "studies/"


def shipped_recipes() -> dict[str, Path]:
    """Return the recipes of the package, by name, in alphabetical order.

    Example:
        >>> "quickstart.yaml" in shipped_recipes()
        True
    """
    return {name: path for name, path in _shipped().items() if not name.startswith(_STUDIES)}


def shipped_studies() -> dict[str, Path]:
    """Return the study files of the package, by name, for ``compare``.

    Example:
        >>> "studies/digits.yaml" in shipped_studies()
        True
    """
    return {name: path for name, path in _shipped().items() if name.startswith(_STUDIES)}


def _shipped() -> dict[str, Path]:
    folder = recipes_folder(Path(__file__).resolve().parents[2])
    if folder is None:
        return {}
    files = sorted(path for path in folder.rglob("*") if path.suffix in _SUFFIXES)
    return {path.relative_to(folder).as_posix(): path for path in files}


def recipes_folder(package: Path) -> Path | None:
    """Return the recipes' folder: package data when installed, ``configs/`` in a clone.

    Args:
        package: The package's folder.
    """
    clone = package.parent
    if (package / "configs").is_dir():
        return package / "configs"
    if (clone / "pyproject.toml").exists() and (clone / "configs").is_dir():
        return clone / "configs"
    return None


def recipe_title(path: Path) -> str:
    """Return the first clause of a recipe's leading comment, or an empty string."""
    with path.open(encoding="utf-8") as file:
        first = file.readline().strip()
    if not first.startswith("#"):
        return ""
    return first.lstrip("# ").split(": ")[0].split(". ")[0].rstrip(".:")


def find_config(name: str) -> Path:
    """Return the file that ``--config name`` means.

    A file that exists wins; then the name with ``.yaml``; then a shipped recipe, with or without
    ``.yaml`` and ``configs/``.

    Raises:
        ConfigError: The file does not exist, or cannot be read.
    """
    if "://" in name:
        raise ConfigError(
            f"config {name}: remote configs are not read; download the file and pass its path."
        )
    path = Path(name)
    here = [path, *(path.with_name(path.name + suffix) for suffix in _SUFFIXES if path.name)]
    for candidate in here:
        if candidate.is_file():
            return candidate
    recipes = _shipped()
    short = name.removeprefix("./").removeprefix("configs/")
    for candidate_name in (short, *(short + suffix for suffix in _SUFFIXES)):
        if candidate_name in recipes:
            return recipes[candidate_name]
    if path.is_dir():
        raise ConfigError(f"config {name} is a directory; pass a YAML file.")
    if path.exists():
        raise ConfigError(f"config {name} is not a regular file; pass a YAML file.")
    names = [*_files_beside(path), *recipes, *(Path(recipe).stem for recipe in recipes)]
    raise ConfigError(
        f"config {name} not found: neither a file nor a recipe."
        f"{did_you_mean(path.name, names)} `python -m fedlightning --help` lists the recipes."
    )


def _files_beside(path: Path) -> list[str]:
    try:
        return [entry.name for entry in path.parent.iterdir() if entry.suffix in _SUFFIXES]
    except OSError:
        return []
