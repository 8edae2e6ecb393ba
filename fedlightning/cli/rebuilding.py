"""Objects of a finished run, built from what its ``config.yaml`` says."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedlightning.cli.config.only_in_python import refuse_missing
from fedlightning.errors import ConfigError, EnvironmentFailure
from fedlightning.storage.run_layout import CONFIG

if TYPE_CHECKING:
    import pytorch_lightning as pl

    from fedlightning.algorithms import Algorithm
    from fedlightning.datamodules import FederatedDataModule
    from fedlightning.federation.settings import Federation

__all__ = [
    "algorithm_from_run",
    "data_from_run",
    "federation_from_run",
    "module_from_run",
    "trainer_settings_from_run",
]


def module_from_run(run: str | os.PathLike[str], strict: bool = False) -> pl.LightningModule:
    """Build the module that a run's ``config.yaml`` names; ignore its other entries.

    This runs the code of the named class.

    Args:
        run: The run's folder.
        strict: Whether the config may name classes of this package, torch and Lightning only, for
            the rest of this process.

    Returns:
        The module, as its constructor initialises it.

    Raises:
        ConfigError: The config is missing, or its module cannot be built.
        EnvironmentFailure: The config cannot be read.
    """
    import pytorch_lightning as pl

    import fedlightning.models  # noqa: F401  # imported classes can be named without their module

    built: pl.LightningModule = _subclass_from_run(
        run, strict, "model", pl.LightningModule,
        "trained it only; in Python, pass the module: client_model(run, client, module).",
    )  # fmt: skip
    return built


def algorithm_from_run(run: str | os.PathLike[str], strict: bool = False) -> Algorithm:
    """Build the algorithm that a run's ``config.yaml`` names; see :func:`module_from_run`.

    Raises:
        ConfigError: The config is missing, or its algorithm cannot be built.
        EnvironmentFailure: The config cannot be read.
    """
    import fedlightning.algorithms
    from fedlightning.cli.parser import FederatedArgumentParser

    federation = _entries(run, strict).get("federation")
    algorithm = federation.get("algorithm") if isinstance(federation, dict) else None
    if algorithm is None:
        return fedlightning.algorithms.FedAvg()
    refuse_missing(algorithm, str(Path(run) / CONFIG), "federation.algorithm")
    parser = FederatedArgumentParser()
    parser.add_subclass_arguments(fedlightning.algorithms.Algorithm, "algorithm")
    built: Algorithm = _instantiated(parser, "algorithm", algorithm)
    return built


def federation_from_run(run: str | os.PathLike[str], strict: bool = False) -> Federation:
    """Build the federation that a run's ``config.yaml`` names; see :func:`module_from_run`.

    Raises:
        ConfigError: The config is missing, or its federation cannot be built.
        EnvironmentFailure: The config cannot be read.
    """
    import fedlightning.algorithms.aggregation  # noqa: F401  # see module_from_run
    from fedlightning.cli.parser import FederatedArgumentParser
    from fedlightning.federation.settings import Federation

    entry = _entries(run, strict).get("federation") or {}
    refuse_missing(entry, str(Path(run) / CONFIG), "federation")
    parser = FederatedArgumentParser()
    parser.add_class_arguments(Federation, "federation")
    parser.set_defaults({"federation.algorithm": {"class_path": "fedlightning.FedBABU"}})
    built: Federation = _instantiated(parser, "federation", entry)
    return built


def data_from_run(run: str | os.PathLike[str], strict: bool = False) -> FederatedDataModule:
    """Build the data module that a run's ``config.yaml`` names; see :func:`module_from_run`.

    Raises:
        ConfigError: The config is missing, or its data module cannot be built.
        EnvironmentFailure: The config cannot be read.
    """
    from fedlightning.datamodules import FederatedDataModule

    built: FederatedDataModule = _subclass_from_run(
        run, strict, "data", FederatedDataModule,
        "trained the run only; in Python, pass data=... to Run(folder).",
    )  # fmt: skip
    return built


def trainer_settings_from_run(
    run: str | os.PathLike[str], strict: bool = False, **changes: Any
) -> dict[str, Any]:
    """Build the trainer's arguments, callbacks among them, that a run's ``config.yaml`` names.

    Args:
        run: The run's folder.
        strict: See :func:`module_from_run`.
        **changes: Arguments instead of the run's, as a config has them.

    Raises:
        ConfigError: The config is missing, or one of its objects cannot be built.
        EnvironmentFailure: The config cannot be read.
    """
    import fedlightning.callbacks  # noqa: F401  # see module_from_run
    from fedlightning.cli.parser import FederatedArgumentParser
    from fedlightning.cli.run_arguments import add_trainer_arguments
    from fedlightning.trainer import FederatedTrainer

    entry = {**(_entries(run, strict).get("trainer") or {}), **changes}
    refuse_missing(entry, str(Path(run) / CONFIG), "trainer")
    parser = FederatedArgumentParser()
    add_trainer_arguments(parser, FederatedTrainer)
    settings = {**_instantiated(parser, "trainer", entry)}
    callbacks = settings.get("callbacks") or []
    settings["callbacks"] = callbacks if isinstance(callbacks, list) else [callbacks]
    return settings


def _entries(run: str | os.PathLike[str], strict: bool) -> dict[str, Any]:
    """Return what a run's ``config.yaml`` says."""
    import yaml

    from fedlightning.cli.config.strict_yaml import check_config
    from fedlightning.cli.parser import prepare_parsing

    path = Path(run) / CONFIG
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: not found, so the model is unknown; in Python, pass it: "
            "client_model(run, client, module)."
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (at byte {error.start}).") from error
    except OSError as error:
        raise EnvironmentFailure(f"cannot read {path}: {error.strerror or error}") from error
    check_config(text, str(path))
    prepare_parsing(strict)
    found: dict[str, Any] = yaml.safe_load(text)
    return found


def _subclass_from_run(
    run: str | os.PathLike[str], strict: bool, key: str, base: type, elsewhere: str
) -> Any:
    """Build the object whose class a run's config names under a key.

    Args:
        run: The run's folder.
        strict: Whether other packages' classes are refused.
        key: ``model`` or ``data``.
        base: What it must be.
        elsewhere: How a message ends that says which program alone knows the class.
    """
    from fedlightning.cli.parser import FederatedArgumentParser

    entry, where = _entries(run, strict).get(key), str(Path(run) / CONFIG)
    if not isinstance(entry, dict) or "class_path" not in entry:
        raise ConfigError(
            f"{where}: {key} names no class_path, so the class is known to the program that "
            f"{elsewhere}"
        )
    refuse_missing(entry, where, key)
    parser = FederatedArgumentParser()
    parser.add_lightning_class_args(base, key, subclass_mode=True)
    return _instantiated(parser, key, entry)


def _instantiated(parser: Any, name: str, value: Any) -> Any:
    from fedlightning.cli.diagnostics.constructor_errors import name_failing_setting

    config = parser.parse_object({name: value})
    instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes
    with name_failing_setting(config, {}):
        return instantiate(config)[name]
