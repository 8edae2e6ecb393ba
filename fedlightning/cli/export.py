"""``python -m fedlightning export``: a client's full model as one file."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NoReturn

from fedlightning.cli.config.command import Command
from fedlightning.cli.rebuilding import algorithm_from_run, module_from_run
from fedlightning.errors import ConfigError, did_you_mean
from fedlightning.storage.run_layout import client_names_in, personal_names_in

if TYPE_CHECKING:
    import pytorch_lightning as pl

    from fedlightning.algorithms import Algorithm

__all__ = ["export", "read_options", "write_client"]

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
    return write_client(
        given.run,
        _client(given.client, Path(given.run)),
        given.output,
        lambda: module_from_run(given.run, command.strict),
        lambda: algorithm_from_run(given.run, command.strict),
        chosen=given.format,
        shape=_shape(given.input_shape),
        ckpt_path=given.ckpt_path,
        overwrite=given.overwrite,
    )


def write_client(
    run: str | os.PathLike[str],
    client: int | Literal["global"],
    output: str | os.PathLike[str],
    module: pl.LightningModule | Callable[[], pl.LightningModule],
    algorithm: Callable[[], Algorithm],
    *,
    chosen: str | None = None,
    shape: tuple[int, ...] | None = None,
    ckpt_path: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
) -> str:
    """Write a client's model to a file, and return a line about it.

    Args:
        run: The run's folder.
        client: The client, or ``"global"``.
        output: The file.
        module: The run's module, or a function that returns it.
        algorithm: Returns the run's algorithm.
        chosen: The format; by default what the file's name ends with.
        shape: The shape of one input, for formats that store the computation.
        ckpt_path: The checkpoint with the global model; by default that of the run.
        overwrite: Whether a file that is there may be replaced.

    Raises:
        FedLightningError: The model cannot be written.
    """
    from fedlightning.core.predictors import PredictorModule
    from fedlightning.personalization.models import (
        client_network,
        example_input,
        export_model,
        format_of,
    )

    path, form = Path(output), format_of(output, chosen)
    if path.exists() and not path.is_dir() and not overwrite:
        raise ConfigError(f"output: {path} exists: choose another name, or pass --overwrite.")
    network = client_network(run, client, module, algorithm, ckpt_path=ckpt_path)
    computes = form in ("exported_program", "onnx")
    inner = network.module if isinstance(network, PredictorModule) else network
    if inner is not network and not computes:
        raise ConfigError(
            f"format: client {client} predicts with more than one state of "
            f"{type(inner).__name__}, which {form} cannot hold; take exported_program or onnx."
        )
    example = example_input(inner, run, shape) if computes else None
    export_model(network, path, form, example, overwrite=overwrite)
    whose = "the global model"
    if client != "global":
        name = _names(Path(run)).get(client)
        whose = f"the model of client {client}" + (f" ({name})" if name is not None else "")
    size = f"{path.stat().st_size:,} bytes"
    return f"{whose} ({type(inner).__name__}, {form}, {size}): {path}"


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
    parser.add_argument(
        "--client",
        metavar="ID",
        help="the client, by id or name, or global for the "
        "global model (a client of that name goes by its id)",
    )
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
    names = _names(run)
    if (
        named := next((client for client, name in names.items() if name == text), None)
    ) is not None:
        return named
    zeros = names and text.startswith("0") and text != "0"  # such as 007, which is meant as a name
    if zeros or not text.isascii() or not text.isdigit():
        near = did_you_mean(text, names.values())
        raise ConfigError(
            f"client must be a client id or global, or a client's name, got {text!r}."
            f"{near or _some(list(names.values()))}"
        )
    return int(text)


def _names(run: Path) -> dict[int, str]:
    """Return the clients' names, as far as the run folder has them."""
    return {**dict(enumerate(client_names_in(run) or ())), **personal_names_in(run)}


def _some(names: Sequence[str], most: int = 10) -> str:
    """Return a sentence with the first names, or nothing without names."""
    more = f", and {len(names) - most} more" if len(names) > most else ""
    return f" The run's clients are {', '.join(names[:most])}{more}." if names else ""


def _shape(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    sizes = text.replace("x", ",").split(",")
    if not all(size.strip().isdigit() and int(size) > 0 for size in sizes):
        raise ConfigError(f"input_shape must be sizes such as 3,32,32, got {text!r}.")
    return tuple(int(size) for size in sizes)
