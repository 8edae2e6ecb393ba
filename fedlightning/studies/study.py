"""The study file: variants of a config, seeds and a grid."""

from __future__ import annotations

import copy
import operator
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from fedlightning.cli.config.recipes import find_config
from fedlightning.cli.config.strict_yaml import check_config
from fedlightning.core.validation import check_integer, is_integer
from fedlightning.errors import ConfigError, did_you_mean
from fedlightning.storage.files import os_errors_as_failures

__all__ = ["Study", "load_yaml", "read_study", "study_of", "study_source", "with_overrides"]

_MOST_SEED = 2**32 - 1
_MOST_SEEDS = 10_000

Settings = dict[str, Any]


@dataclass(frozen=True)
class Study:
    """The content of a study file.

    Args:
        name: The title; by default the file's name.
        output: The folder of the study.
        base: The config that all runs share.
        variants: The settings of each variant, by its name.
        seeds: ``seed_everything`` of the runs of each variant.
        grid: Further axes, crossed with the variants: for each point its name and settings.
        workers: Number of runs at the same time.
        baseline: The variant that the others are tested against, if the file names one.
    """

    name: str
    output: Path
    base: Settings
    variants: Mapping[str, Settings]
    seeds: tuple[int, ...] = (0,)
    grid: Mapping[str, Mapping[str, Settings]] = field(default_factory=dict)
    workers: int = 1
    baseline: str | None = None


_KEYS = {
    "title", "output", "base", "settings", "seeds", "variants", "grid", "workers", "baseline",
    "tune",
}  # fmt: skip


def load_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file by the rules of configs; ``1e-3`` is a number.

    Raises:
        ConfigError: It is not valid YAML, or not a mapping.
        EnvironmentFailure: It cannot be read.
    """
    from jsonargparse import get_loader

    with os_errors_as_failures("read", path):
        content = path.read_bytes()
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (at byte {error.start}).") from error
    check_config(text, str(path))
    loaded: dict[str, Any] = get_loader("yaml")(text)
    return loaded


def read_study(path: Path, changes: Mapping[str, Any] | None = None) -> Study:
    r"""Read a study file.

    Args:
        path: The file.
        changes: Keys of the file that the command line replaces.

    Raises:
        ConfigError: The file is refused; the message names the key.

    Example:
        >>> path = getfixture("tmp_path") / "two.yaml"
        >>> _ = path.write_text("base: quickstart.yaml\nvariants: [FedAvg, FedBABU]\nseeds: 2\n")
        >>> study = read_study(path)
        >>> study.seeds, study.variants["FedAvg"], study.output.as_posix()
        ((0, 1), {'federation.algorithm': 'FedAvg'}, 'studies/two')
    """
    return study_of({**load_yaml(path), **(changes or {})}, path.stem, path.parent, f"{path}: ")


def study_source(
    path: Path, study: Study, changes: Mapping[str, Any], overrides: Mapping[str, Any]
) -> bytes:
    """Return the study file to leave in a study's folder: from there it plans the same runs.

    That is the file itself, unless its base lies beside it or the command line says more.

    Args:
        path: The file.
        study: What was read from it.
        changes: Its keys that the command line replaces.
        overrides: Settings of all runs on the command line.
    """
    given = load_yaml(path)
    base = given["base"]
    beside = isinstance(base, str) and (path.parent / base).is_file()
    if not (beside or changes or overrides):
        return path.read_bytes()
    given["title"] = study.name
    if beside:
        given["base"] = os.path.relpath(path.parent / base, study.output)
    for key in changes:
        value = getattr(study, key)
        given[key] = list(value) if isinstance(value, tuple) else value
    given["output"] = str(study.output)
    if overrides:
        given["variants"] = {
            name: with_overrides(settings, overrides) for name, settings in study.variants.items()
        }
    text: str = yaml.safe_dump(given, sort_keys=False, allow_unicode=True)
    return text.encode()


def with_overrides(settings: Settings, overrides: Mapping[str, Any]) -> Settings:
    """Return settings that end with some others, which so win.

    Example:
        >>> with_overrides({"model.lr": 1, "model.width": 8}, {"model.lr": 2})
        {'model.width': 8, 'model.lr': 2}
    """
    return {key: v for key, v in settings.items() if key not in overrides} | dict(overrides)


def study_of(given: Mapping[str, Any], name: str, folder: Path, where: str = "") -> Study:
    """Return the study that the keys of a study file describe.

    Args:
        given: The keys.
        name: The study's name, unless it has a title.
        folder: Where its base lies, if that is a file.
        where: What messages begin with.

    Raises:
        ConfigError: A key is refused.
    """
    for key in given:
        if key not in _KEYS:
            text = f"{where}a study has no key {key!r}.{did_you_mean(str(key), _KEYS)}"
            if key in ("model", "data", "trainer", "federation"):
                text += " Settings of all runs belong under settings, or under base."
            raise ConfigError(f"{text} Its keys: {', '.join(sorted(_KEYS))}.")
    for key in ("base", "variants"):
        if given.get(key) in (None, "", [], {}):
            raise ConfigError(f"{where}a study needs {key}.")
    common = _settings(given.get("settings") or {}, "settings")
    return Study(
        name=str(given.get("title") or name),
        output=_output(given.get("output"), name),
        base=_base(given["base"], common, folder),
        variants=_variants(given["variants"]),
        seeds=_seeds(given.get("seeds", 1)),
        grid=_grid(given.get("grid") or {}),
        workers=_workers(given.get("workers", 1)),
        baseline=_baseline(given.get("baseline"), given["variants"]),
    )


def _output(given: Any, name: str) -> Path:
    if given is None:
        return Path("studies", name)
    if not isinstance(given, str) or not given.strip():
        raise ConfigError(f"output must be the path of a folder, got {given!r}.")
    return Path(given).expanduser()


def _base(given: Any, common: Settings, folder: Path) -> Settings:
    from fedlightning.cli.config.overrides import apply_overrides

    if isinstance(given, str):
        beside = folder / given
        given = load_yaml(beside if beside.is_file() else find_config(given))
    if not isinstance(given, Mapping):
        raise ConfigError(f"base must be a recipe, a path or a mapping, got {given!r}.")
    if "seed_everything" in common:
        raise ConfigError("settings.seed_everything: the seeds of a study belong under seeds.")
    return apply_overrides(given, common)


def _variants(given: Any) -> dict[str, Settings]:
    if isinstance(given, Mapping):
        return {_name(name): _variant(value, str(name)) for name, value in given.items()}
    if not isinstance(given, list):
        raise ConfigError(
            "variants must be a mapping from names to settings, or a list of algorithms, got "
            f"{given!r}."
        )
    found: dict[str, Settings] = {}
    for item in given:
        name = _name(_class(item) or "")
        if name in found:
            raise ConfigError(
                f"variants: {name} occurs twice; write a mapping, which gives each its own name."
            )
        found[name] = {"federation.algorithm": copy.deepcopy(item)}
    return found


def _variant(value: Any, name: str) -> Settings:
    """Return a variant's settings; a bare algorithm is a setting, ``None`` is the base itself."""
    if _class(value) is not None:
        return {"federation.algorithm": copy.deepcopy(value)}
    return _settings(value if value is not None else {}, f"variants.{name}")


def _class(value: Any) -> str | None:
    path = value.get("class_path") if isinstance(value, Mapping) else value
    return path.rpartition(".")[2] if isinstance(path, str) and path else None


def _settings(given: Any, where: str) -> Settings:
    if not isinstance(given, Mapping):
        raise ConfigError(f"{where} must be a mapping of settings, got {given!r}.")
    for key in given:
        if str(key) == "seed_everything" and where != "settings":
            raise ConfigError(f"{where}.{key}: the seeds of a study belong under seeds.")
    return {str(key): value for key, value in given.items()}


def _name(given: Any) -> str:
    name = str(given).strip()
    if not name or any(sign in name for sign in "/\\\n") or name.startswith("."):
        raise ConfigError(
            f"variants: {given!r} is not a valid name: it becomes the name of a folder."
        )
    return name


def _seeds(given: Any) -> tuple[int, ...]:
    """Return the seeds, integers of any kind; a number n stands for 0..n-1."""
    several: Sequence[Any] = ()
    try:
        several = () if isinstance(given, (str, bytes, Mapping)) else list(given)
    except TypeError:  # a number, or nothing of use
        if is_integer(number := _whole(given)):
            several = range(min(number, _MOST_SEEDS + 1))
    if not 0 < len(several) <= _MOST_SEEDS:
        raise ConfigError(f"seeds must be a list such as [0, 1, 2], or a number, got {given!r}.")
    seeds = [_whole(seed) for seed in several]
    for seed in seeds:
        if not is_integer(seed) or not 0 <= seed <= _MOST_SEED:
            raise ConfigError(f"seeds: {seed!r} is none: they are within 0..{_MOST_SEED}.")
    if len(set(seeds)) < len(seeds):
        raise ConfigError(f"seeds: {seeds} has duplicates.")
    return tuple(seeds)


def _whole(value: Any) -> Any:
    """Return an integer of NumPy or torch as Python's, and all else as it is."""
    try:
        return value if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return value


def _grid(given: Any) -> dict[str, dict[str, Settings]]:
    if not isinstance(given, Mapping):
        raise ConfigError(f"grid must be a mapping from settings to lists, got {given!r}.")
    grid: dict[str, dict[str, Settings]] = {}
    for key, points in given.items():
        axis = str(key)
        if isinstance(points, Mapping) and points:
            grid[axis] = {
                _name(name): _settings(value or {}, f"grid.{axis}.{name}")
                for name, value in points.items()
            }
        elif isinstance(points, list) and points:
            named = [(_point(axis, value, at), {axis: value}) for at, value in enumerate(points)]
            grid[axis] = dict(named)
            if len(grid[axis]) < len(points):
                raise ConfigError(f"grid.{axis}: {points} has duplicates.")
        else:
            raise ConfigError(f"grid.{axis} must be a list of values, got {points!r}.")
    return grid


def _point(axis: str, value: Any, position: int) -> str:
    last = axis.rpartition(".")[2]
    if isinstance(value, (bool, int, float, str)) and "/" not in str(value):
        return f"{last}={str(value).lower() if isinstance(value, bool) else value}"
    if isinstance(value, Mapping) and (name := _class(value)):
        arguments = value.get("init_args") or {}
        inner = ",".join(f"{key}={item}" for key, item in arguments.items())
        if "/" not in inner:
            return f"{last}={name}({inner})"
    return f"{last}={'null' if value is None else position}"


def _workers(given: Any) -> int:
    return check_integer("workers", given, at_least=1, at_most=1024)


def _baseline(given: Any, variants: Any) -> str | None:
    names = list(_variants(variants))
    if given is None or str(given) in names:
        return None if given is None else str(given)
    raise ConfigError(
        f"baseline {given!r} is not a variant.{did_you_mean(str(given), names)} "
        f"The variants are: {', '.join(names)}."
    )
