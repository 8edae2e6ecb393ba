"""What a run is, in words: its config, and the facts that loggers get beside hyperparameters."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import yaml

from fedlightning.core.description import described, missing_in
from fedlightning.core.seeding import default_seed
from fedlightning.core.versions import package_versions
from fedlightning.datamodules import FederatedDataModule
from fedlightning.engine.checks.trainer_flags import UNSUPPORTED_FLAGS
from fedlightning.federation.settings import Federation

__all__ = ["MADE_IN_PYTHON", "config_text", "run_config", "run_facts", "trainer_settings"]

MADE_IN_PYTHON = "# made in Python"
"""What the second line of such a run's config begins with."""

_LONGEST = 200

# Loggers are objects of a program; what the others hold depends on the machine.
_NOT_OF_CONFIGS = {"logger", "plugins", "use_distributed_sampler", "model_registry"}
_NOT_OF_CONFIGS |= set(UNSUPPORTED_FLAGS)


def trainer_settings(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Return a trainer's arguments as a config has them, those with their defaults, too.

    Args:
        flags: The arguments, as the user has given them.

    Example:
        >>> trainer_settings({"max_epochs": 3})["max_epochs"], trainer_settings({})["devices"]
        (3, 1)
    """
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(pl.Trainer).parameters.items()
        if name not in _NOT_OF_CONFIGS
    }
    settings = {**defaults, "devices": 1, **flags}
    said = {name: described(settings[name]) for name in [*defaults, *(flags.keys() - defaults)]}
    said["logger"] = False if flags.get("logger") is False else None
    return {name: value for name, value in said.items() if name not in _NOT_OF_CONFIGS - {"logger"}}


def run_config(
    federation: Federation,
    module: pl.LightningModule,
    data: pl.LightningDataModule | None,
    flags: Mapping[str, Any],
) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Return a run's config, and the keys of what it cannot say.

    Args:
        federation: The federation's settings.
        module: The clients' module.
        data: The clients' data, if the run has them as a data module.
        flags: The trainer's arguments, as configs have them (:func:`trainer_settings`).

    Returns:
        The config, and each missing key with what its value was. A callback or another object
        of the trainer that no config can say is left out of the config; what is missing of model,
        data and federation has a text in its place.
    """
    said, left_out = dict(flags), list[tuple[str, str]]()
    for name, value in flags.items():
        several = isinstance(value, list)
        kept = [each for each in (value if several else [value]) if not any(missing_in(each))]
        left_out += missing_in(value, f"trainer.{name}")
        if not several:
            said[name] = kept[0] if kept else None
        else:
            said[name] = kept
    config = {
        "seed_everything": default_seed(None),
        "model": described(module),
        "data": described(data),
        "federation": described(federation)["init_args"],
        "trainer": said,
        "ckpt_path": None,
    }
    return config, [*missing_in(config), *left_out]


def config_text(config: Mapping[str, Any], missing: list[tuple[str, str]]) -> str:
    """Return the text of ``config.yaml`` of a run that was made in Python."""
    versions = package_versions()
    lines = [f"pytorch_lightning=={versions['pytorch-lightning']}"]
    listed = ", ".join(f"{name} {version}" for name, version in versions.items())
    lines.append(f"{MADE_IN_PYTHON[2:]}, with {listed}; initial weights are those of the program")
    lines += [f"only in that program: {key} ({what})" for key, what in missing]
    header = "".join(f"# {' '.join(line.split())}\n" for line in lines)
    text: str = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
    return header + text


def run_facts(federation: Federation, data: FederatedDataModule, seed: int) -> dict[str, Any]:
    """Return what makes a run what it is, by names that sort: for the loggers.

    Places of files are left out, and so is what has no short text.

    Args:
        federation: The federation's settings.
        data: The clients' data, set up.
        seed: The run's seed.

    Returns:
        Plain values by names such as ``federation/algorithm`` and ``data/partition``.
    """
    facts = {
        **_flat("federation", described(federation)["init_args"]),
        "federation/algorithm": federation.algorithm.name,
        "data/name": type(data).__name__,
        **_flat("data", described(data)["init_args"]),
        "data/clients": data.num_clients,
        "data/partition_digest": data.partition_digest()[:16],
        "federation/seed": seed,
        **{f"versions/{name}": version for name, version in package_versions().items()},
    }
    return {name: value for name, value in facts.items() if not _is_private(value)}


def _flat(prefix: str, said: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in said.items():
        key = f"{prefix}/{name}"
        if isinstance(value, Mapping) and "class_path" in value:
            found[key] = _short(value)
            found |= _flat(key, value["init_args"])
        elif isinstance(value, (list, Mapping)):
            if value and not any(missing_in(value)) and len(text := _text(value)) <= _LONGEST:
                found[key] = text
        elif value is not None and not any(missing_in(value)):
            found[key] = value
    return found


def _text(value: Any) -> str:
    """Return a value in one line, classes as the calls that make them."""
    if isinstance(value, Mapping) and "class_path" in value:
        given = (f"{k}={_text(v)}" for k, v in value["init_args"].items() if v is not None)
        return f"{_short(value)}({', '.join(given)})"
    if isinstance(value, list):
        return f"[{', '.join(map(_text, value))}]"
    return str(value)


def _short(said: Mapping[str, Any]) -> str:
    return str(said["class_path"]).rpartition(".")[2]


def _is_private(value: Any) -> bool:
    """Whether a value is a place on this machine."""
    return isinstance(value, str) and (os.path.isabs(value) or value.startswith(("~", "file:")))
