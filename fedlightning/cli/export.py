"""``python -m fedlightning export``: a client's full model as one file."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from fedlightning.cli.config.command import Command
from fedlightning.cli.config.only_in_python import refuse_missing
from fedlightning.errors import ConfigError, EnvironmentFailure, did_you_mean
from fedlightning.storage.run_layout import CONFIG, client_names_in

if TYPE_CHECKING:
    import pytorch_lightning as pl

    from fedlightning.algorithms import Algorithm

__all__ = ["algorithm_from_run", "export", "module_from_run", "read_options"]

_USAGE = "python -m fedlightning export --run DIR --client ID --output FILE [--format FORMAT]"


class _Parser(argparse.ArgumentParser):
    """An argparse parser that raises ConfigError."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message.removeprefix('argument ')}: {_USAGE}")


def export(command: Command) -> str:
    """Write the model that a command names, and return a line about the file.

    Raises:
        FedLightningError: The model cannot be written.
    """
    given = read_options(command.options)
    client = _client(given.client, Path(given.run))
    shape = _shape(given.input_shape)
    from fedlightning.core.predictors import PredictorModule
    from fedlightning.personalization.models import (
        client_network,
        example_input,
        export_model,
        format_of,
    )

    output, chosen = Path(given.output), format_of(given.output, given.format)
    if output.exists() and not output.is_dir() and not given.overwrite:
        raise ConfigError(f"output: {output} exists: choose another name, or pass --overwrite.")
    network = client_network(
        given.run,
        client,
        lambda: module_from_run(given.run, command.strict),
        lambda: algorithm_from_run(given.run, command.strict),
        ckpt_path=given.ckpt_path,
    )
    computes = chosen in ("exported_program", "onnx")
    module = network.module if isinstance(network, PredictorModule) else network
    if module is not network and not computes:
        raise ConfigError(
            f"format: client {client} predicts with more than one state of "
            f"{type(module).__name__}, which {chosen} cannot hold; take exported_program or onnx."
        )
    example = example_input(module, given.run, shape) if computes else None
    export_model(network, output, chosen, example, overwrite=given.overwrite)
    whose = "the global model" if client == "global" else f"the model of client {client}"
    size = f"{output.stat().st_size:,} bytes"
    return f"{whose} ({type(module).__name__}, {chosen}, {size}): {output}"


def read_options(options: Sequence[str]) -> argparse.Namespace:
    """Return the options of the command.

    Raises:
        ConfigError: An option is unknown, missing, or lacks its value.
    """
    parser = _parser()
    names = [
        option[2:]
        for action in parser._actions
        for option in action.option_strings
        if option.startswith("--")
    ]
    known, strange = parser.parse_known_args(list(options))
    if strange:
        first = strange[0]
        if not first.startswith("--"):
            raise ConfigError(f"unexpected {first!r}: options are written --key=value.")
        key = first[2:].partition("=")[0]
        raise ConfigError(f"unknown option {key}.{did_you_mean(key, names)}")
    missing = [name for name in ("run", "client", "output") if getattr(known, name) is None]
    if missing:
        raise ConfigError(f"export needs {' and '.join(missing)}: {_USAGE}")
    return known


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m fedlightning export",
        usage=_USAGE,
        description="Write a client's full model, or the global one, for use elsewhere.",
        allow_abbrev=False,
    )
    parser.add_argument("--run", metavar="DIR", help="a run's folder, with personalized/ in it")
    parser.add_argument("--client", metavar="ID", help="the client, by id or name, or global")
    parser.add_argument("--output", metavar="FILE", help="the file to write")
    parser.add_argument(
        "--format",
        help="state_dict, safetensors, exported_program or onnx; by default the "
        "one that FILE ends with: .pt, .safetensors, .pt2, .onnx",
    )
    parser.add_argument(
        "--input_shape",
        metavar="SHAPE",
        help="shape of one input, e.g. 3,32,32, for formats that store the computation, if the run "
        "does not record it",
    )
    parser.add_argument("--ckpt_path", metavar="PATH", help="checkpoint with the global model")
    parser.add_argument("--overwrite", action="store_true", help="replace FILE")
    parser.add_argument(
        "--strict",
        action="store_true",
        help="refuse a run whose config.yaml names classes of other packages",
    )
    return parser


def _client(text: str, run: Path) -> int | Literal["global"]:
    if text == "global":
        return "global"
    names = client_names_in(run)
    if names is not None and text in names:
        return names.index(text)
    if not text.isascii() or not text.isdigit():
        raise ConfigError(
            f"client must be a client id or global, or a client's name, got {text!r}."
            f"{did_you_mean(text, names or ())}"
        )
    return int(text)


def _shape(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    sizes = text.replace("x", ",").split(",")
    if not all(size.strip().isdigit() and int(size) > 0 for size in sizes):
        raise ConfigError(f"input_shape must be sizes such as 3,32,32, got {text!r}.")
    return tuple(int(size) for size in sizes)


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
    from fedlightning.cli.parser import FederatedArgumentParser

    model = _entries(run, strict).get("model")
    if not isinstance(model, dict) or "class_path" not in model:
        raise ConfigError(
            f"{Path(run) / CONFIG}: model names no class_path, so the class is known to the "
            "program that trained it only; in Python, pass the module: client_model(run, client, "
            "module)."
        )
    refuse_missing(model, str(Path(run) / CONFIG), "model")
    parser = FederatedArgumentParser()
    parser.add_lightning_class_args(pl.LightningModule, "model", subclass_mode=True)
    built: pl.LightningModule = _instantiated(parser, "model", model)
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


def _instantiated(parser: Any, name: str, value: Any) -> Any:
    from fedlightning.cli.diagnostics.constructor_errors import name_failing_setting

    config = parser.parse_object({name: value})
    instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes
    with name_failing_setting(config, {}):
        return instantiate(config)[name]
