"""``python -m fedlightning export``: a client's full model as one file."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NoReturn

from fedlightning.cli.config.command import Command
from fedlightning.errors import ConfigError, did_you_mean

__all__ = ["export", "read_options"]

_USAGE = "python -m fedlightning export --run DIR --client ID --output FILE [--format FORMAT]"


class _Parser(argparse.ArgumentParser):
    """argparse with errors of ours."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message.removeprefix('argument ')}: {_USAGE}")


def export(command: Command) -> str:
    """Write the model that a command asks for; return what was written.

    Raises:
        FedLightningError: It cannot be done.
    """
    given = read_options(command.options)
    client = _client(given.client)
    shape = _shape(given.input_shape)
    from fedlightning.personalization.models import client_model, example_input, export_model, format_of

    output, chosen = Path(given.output), format_of(given.output, given.format)
    if output.exists() and not output.is_dir() and not given.overwrite:
        raise ConfigError(f"output: {output} exists: give another name, or --overwrite.")
    module = client_model(given.run, client, ckpt_path=given.ckpt_path, strict=command.strict)
    computes = chosen in ("exported_program", "onnx")
    example = example_input(module, given.run, shape) if computes else None
    export_model(module, output, chosen, example, overwrite=given.overwrite)
    whose = "the global model" if client == "global" else f"the model of client {client}"
    size = f"{output.stat().st_size:,} bytes"
    return f"{whose} ({type(module).__name__}, {chosen}, {size}): {output}"


def read_options(options: Sequence[str]) -> argparse.Namespace:
    """Return the options of the command.

    Raises:
        ConfigError: One is unknown, missing, or without its value.
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
    parser.add_argument("--client", metavar="ID", help="the client, or global")
    parser.add_argument("--output", metavar="FILE", help="where to write")
    parser.add_argument(
        "--format",
        help="state_dict, safetensors, exported_program or onnx; by default what FILE ends with: "
        ".pt, .safetensors, .pt2, .onnx",
    )
    parser.add_argument(
        "--input_shape",
        metavar="SHAPE",
        help="shape of one input, e.g. 3,32,32, for formats that hold the computation, where the "
        "run does not say it",
    )
    parser.add_argument("--ckpt_path", metavar="PATH", help="checkpoint with the global model")
    parser.add_argument("--overwrite", action="store_true", help="replace FILE")
    parser.add_argument(
        "--strict",
        action="store_true",
        help="refuse a run whose config.yaml names classes of other packages",
    )
    return parser


def _client(text: str) -> int | Literal["global"]:
    if text == "global":
        return "global"
    if not text.isascii() or not text.isdigit():
        raise ConfigError(f"client must be a client's id or global, got {text!r}.")
    return int(text)


def _shape(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    sizes = text.replace("x", ",").split(",")
    if not all(size.strip().isdigit() and int(size) > 0 for size in sizes):
        raise ConfigError(f"input_shape must be sizes such as 3,32,32, got {text!r}.")
    return tuple(int(size) for size in sizes)
