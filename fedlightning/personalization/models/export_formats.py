"""Writing a model in formats that other programs read.

TorchScript is not among them: torch has deprecated ``torch.jit.trace``, which warns, and names
``torch.export`` in its place.
"""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedlightning.core.state import State, live_state
from fedlightning.errors import ConfigError, EnvironmentFailure, did_you_mean
from fedlightning.storage.files import write_atomically
from fedlightning.storage.tensor_files import serialize

__all__ = ["FORMATS", "export_model", "format_of"]

_SUFFIXES = {
    ".pt": "state_dict",
    ".pth": "state_dict",
    ".safetensors": "safetensors",
    ".pt2": "exported_program",
    ".onnx": "onnx",
}
FORMATS = tuple(dict.fromkeys(_SUFFIXES.values()))
"""What a model can be written as."""


def format_of(path: str | os.PathLike[str], given: str | None = None) -> str:
    """Return the format to write a file in: the one that is given, else what its name ends with.

    Raises:
        ConfigError: The format is unknown.

    Example:
        >>> format_of("model.pt2"), format_of("model.bin", "onnx")
        ('exported_program', 'onnx')
        >>> format_of("model.bin", "onx")
        Traceback (most recent call last):
        fedlightning.errors.ConfigError: format=onx is none of state_dict, ... Did you mean 'onnx'?
    """
    if given is None:
        suffix = Path(path).suffix
        if suffix in _SUFFIXES:
            return _SUFFIXES[suffix]
        raise ConfigError(
            f"{os.fspath(path)}: the name does not say the format: give one of "
            f"{', '.join(FORMATS)}, or a name that ends with one of {', '.join(_SUFFIXES)}."
        )
    if given == "torchscript":
        raise ConfigError(
            "format=torchscript is deprecated by torch and not written: exported_program takes its "
            "place, onnx runs without torch."
        )
    if given not in FORMATS:
        raise ConfigError(
            f"format={given} is none of {', '.join(FORMATS)}.{did_you_mean(given, FORMATS)}"
        )
    return given


def export_model(
    module: nn.Module,
    path: str | os.PathLike[str],
    format: str | None = None,  # noqa: A002
    example: Tensor | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a model to a file, all of it or nothing.

    ``state_dict`` and ``safetensors`` hold the weights by their keys. ``exported_program`` and
    ``onnx`` hold the computation of ``forward``, too, for batches of any size.

    Args:
        module: The model, in the mode to export, as a rule ``eval()``.
        path: The file.
        format: One of :data:`FORMATS`; by default what the file's name ends with.
        example: Two inputs or more, in one tensor; only the shape and dtype count.
        overwrite: Whether a file that is there may be replaced.

    Returns:
        The file.

    Raises:
        ConfigError: The format is unknown, the file exists, or ``forward`` cannot be exported.
        EnvironmentFailure: A package is missing, or the file cannot be written.

    Example:
        >>> path = getfixture("tmp_path") / "model.pt2"
        >>> _ = export_model(nn.Linear(3, 2), path, example=torch.zeros(2, 3))
        >>> torch.export.load(path).module()(torch.zeros(5, 3)).shape
        torch.Size([5, 2])
    """
    target, chosen = Path(path), format_of(path, format)
    if target.is_dir():
        raise ConfigError(f"{target} is a folder; give a file.")
    if target.exists() and not overwrite:
        raise ConfigError(f"{target} exists: give another name, or overwrite it with overwrite.")
    if chosen in _OF_COMPUTATION:
        if example is None:
            raise ConfigError(f"format={chosen} needs an example of the inputs.")
        content = _OF_COMPUTATION[chosen](module, example)
    else:
        content = _OF_WEIGHTS[chosen](live_state(module))
    write_atomically(target, content)
    return target


def _state_dict(state: State) -> bytes:
    plain = {
        key: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for key, value in state.items()
    }
    buffer = io.BytesIO()
    torch.save(plain, buffer)
    return buffer.getvalue()


def _safetensors(state: State) -> bytes:
    return serialize(state, {"format": "pt"})


def _exported_program(module: nn.Module, example: Tensor) -> bytes:
    buffer = io.BytesIO()
    batch = torch.export.Dim("batch")
    with _explained(module, "exported_program"):
        module(example)
        program = torch.export.export(module, (example,), dynamic_shapes=({0: batch},))
        torch.export.save(program, buffer)
    return buffer.getvalue()


def _onnx(module: nn.Module, example: Tensor) -> bytes:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise EnvironmentFailure(
            f"format=onnx needs the package {error.name}: pip install 'fedlightning[onnx]'."
        ) from error
    batch = torch.export.Dim("batch")
    with _explained(module, "onnx"):
        module(example)
        program: Any = torch.onnx.export(
            module,
            (example,),
            dynamo=True,
            dynamic_shapes=({0: batch},),
            input_names=["input"],
            output_names=["output"],
            verbose=False,
        )
        content: bytes = program.model_proto.SerializeToString()
    return content


@contextmanager
def _explained(module: nn.Module, chosen: str) -> Iterator[None]:
    """Turn what torch says, logs and prints of a model that it cannot export into one line."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with torch.no_grad(), redirect_stderr(io.StringIO()):
            yield
    except Exception as error:
        first = next((line for line in str(error).splitlines() if line.strip()), "")
        raise ConfigError(
            f"{type(module).__name__} cannot be exported as {chosen}: {type(error).__name__}: "
            f"{first[:300]} (state_dict and safetensors ask nothing of forward)."
        ) from error
    finally:
        logging.disable(before)


_OF_WEIGHTS: dict[str, Callable[[State], bytes]] = {
    "state_dict": _state_dict,
    "safetensors": _safetensors,
}
_OF_COMPUTATION: dict[str, Callable[[nn.Module, Tensor], bytes]] = {
    "exported_program": _exported_program,
    "onnx": _onnx,
}
