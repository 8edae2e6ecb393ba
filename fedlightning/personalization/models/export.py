"""Load a client's model from what a run has left: the checkpoint and the client's own part."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from fedlightning.algorithms import Algorithm
from fedlightning.core.predictors import Predictor, PredictorModule, StatePredictor
from fedlightning.core.state import State, copy_into, live_state
from fedlightning.errors import CheckpointError, ConfigError
from fedlightning.personalization.models.reader import PersonalIndex, read_index, read_personal
from fedlightning.personalization.models.writer import PREDICTOR, state_digest
from fedlightning.storage.checkpoint_io import checkpoint_at, good_checkpoint
from fedlightning.storage.checkpoint_reader import check_network, read_checkpoint
from fedlightning.storage.run_layout import CHECKPOINTS, PERSONAL_INDEX, PERSONAL_MODELS

__all__ = ["client_model", "client_network", "client_predictor", "example_input"]

_BATCH = 2  # torch.export takes a batch of one for a constant


def client_model(
    run: str | os.PathLike[str],
    client: int | Literal["global"],
    module: pl.LightningModule | Callable[[], pl.LightningModule],
    *,
    ckpt_path: str | os.PathLike[str] | None = None,
) -> pl.LightningModule:
    """Return a client's model: the run's global model, and over it what is the client's own.

    Args:
        run: The folder of a run with ``personalized`` in it: of ``fit``, ``test``, ``validate`` or
            ``personalize``.
        client: The client, or ``"global"`` for the global model.
        module: The module to load the weights into, or a function that returns it, such as
            ``lambda: fedlightning.cli.module_from_run(run)``.
        ckpt_path: The checkpoint with the global model; by default that of the run.

    Returns:
        The module, on the CPU and in eval mode.

    Raises:
        ConfigError: The config cannot be used, or the client has no model.
        CheckpointError: Checkpoint or personal files are missing or damaged, or do not go together.
    """
    built, _, rule = _load(run, client, module, ckpt_path)
    if rule:
        raise ConfigError(
            f"client {client} predicts with more than a state of {type(built).__name__}: load it "
            "with client_predictor(run, client, module, algorithm)."
        )
    return built


def client_predictor(
    run: str | os.PathLike[str],
    client: int,
    module: pl.LightningModule | Callable[[], pl.LightningModule],
    algorithm: Algorithm,
    *,
    ckpt_path: str | os.PathLike[str] | None = None,
) -> Predictor:
    """Return what a client predicts with: its model, or its algorithm's rule over several models.

    Args:
        run: See :func:`client_model`.
        client: The client.
        module: See :func:`client_model`.
        algorithm: The run's algorithm, whose rule it may be.
        ckpt_path: See :func:`client_model`.

    Raises:
        ConfigError: The algorithm has no such rule; see :func:`client_model` as well.
        CheckpointError: See :func:`client_model`.
    """
    built, own, rule = _load(run, client, module, ckpt_path)
    return _predictor(rule, built, algorithm, client) if rule else StatePredictor(built, own)


def client_network(
    run: str | os.PathLike[str],
    client: int | Literal["global"],
    module: pl.LightningModule | Callable[[], pl.LightningModule],
    algorithm: Callable[[], Algorithm],
    *,
    ckpt_path: str | os.PathLike[str] | None = None,
) -> nn.Module:
    """Return what a client predicts with as a module: its model, or a rule over several models.

    Args:
        run: See :func:`client_model`.
        client: See :func:`client_model`.
        module: See :func:`client_model`.
        algorithm: Returns the run's algorithm; called where the client has a rule.
        ckpt_path: See :func:`client_model`.

    Raises:
        ConfigError: See :func:`client_predictor`.
        CheckpointError: See :func:`client_model`.
    """
    built, _, rule = _load(run, client, module, ckpt_path)
    if not rule:
        return built
    return PredictorModule(_predictor(rule, built, algorithm(), client), built)


def _predictor(
    rule: State, built: pl.LightningModule, algorithm: Algorithm, client: int | str
) -> Predictor:
    for hook in algorithm.hooks:
        if (predictor := hook.predictor(rule, built)) is not None:
            return predictor
    raise ConfigError(
        f"client {client} predicts with more than a state of {type(built).__name__}, and "
        f"{algorithm.name} has no rule for that; pass the run's algorithm."
    )


def _load(
    run: str | os.PathLike[str],
    client: int | Literal["global"],
    module: pl.LightningModule | Callable[[], pl.LightningModule],
    ckpt_path: str | os.PathLike[str] | None,
) -> tuple[pl.LightningModule, State, State]:
    """Return the module with a client's state, that state, and what its predictor has beside it."""
    folder = Path(run)
    if not folder.is_dir():
        raise ConfigError(f"run={os.fspath(run)!r} is not a folder; give a run's folder.")
    if client != "global" and not isinstance(client, (int, np.integer)):
        raise ConfigError(f"client must be a client's id or 'global', got {client!r}.")
    index = read_index(folder) if client != "global" else _index_if_any(folder)
    path = _checkpoint(folder, index, ckpt_path)
    checkpoint = read_checkpoint(path)
    own: State = {}
    if client != "global":
        assert index is not None
        _compare(index, checkpoint, path, client)
        own = read_personal(index, client)
    rule = {
        key.removeprefix(PREDICTOR): own.pop(key) for key in list(own) if key.startswith(PREDICTOR)
    }
    with torch.random.fork_rng(devices=[]):
        built = module if isinstance(module, pl.LightningModule) else module()
        built.configure_model()
        built.on_load_checkpoint(checkpoint)
        try:
            _complete(built, checkpoint)
            built.load_state_dict(checkpoint["state_dict"])
        except (CheckpointError, RuntimeError) as error:
            raise CheckpointError(f"ckpt_path={str(path)!r}: {error}") from error
    state = live_state(built)
    for key, value in own.items():
        if key not in state or state[key].shape != value.shape:
            raise CheckpointError(
                f"{folder / PERSONAL_MODELS}: {key} of client {client} does not fit "
                f"{type(built).__name__}."
            )
    copy_into(state, own)
    return built.eval(), own, rule


def _complete(module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
    """Compare a module's network with a checkpoint; where it lacks layers, have it set up first.

    Raises:
        CheckpointError: It is another network.
    """
    makes_layers = type(module).setup is not pl.LightningModule.setup
    try:
        check_network(checkpoint, module)
    except CheckpointError as difference:
        if not makes_layers:
            raise
        try:
            module.setup("predict")
        except Exception as error:  # of the user's own
            raise CheckpointError(
                f"{str(difference).removesuffix('.')}, and {type(module).__name__}.setup, which "
                f"may make layers, failed outside of a run ({type(error).__name__}: {error}); pass "
                "a module that is set up."
            ) from error
        check_network(checkpoint, module)


def example_input(
    module: nn.Module,
    run: str | os.PathLike[str] | None = None,
    shape: tuple[int, ...] | None = None,
) -> Tensor:
    """Return a batch of two inputs of the shape that a module takes, all zeros.

    Args:
        module: The module; its ``example_input_array`` counts if the run says nothing.
        run: The run's folder, whose personal files say what one input is.
        shape: The shape of one input, without the batch.

    Raises:
        ConfigError: Nothing says which shape it is.
    """
    index = _index_if_any(Path(run)) if run is not None else None
    dtype = torch.float32
    if index is not None:
        named = getattr(torch, index.about.input_dtype or "float32", dtype)
        dtype = named if isinstance(named, torch.dtype) else dtype
        shape = shape or index.about.input_shape
    array = getattr(module, "example_input_array", None)
    if shape is None and isinstance(array, Tensor):
        shape, dtype = tuple(array.shape[1:]), array.dtype
    if shape is None:
        raise ConfigError(
            f"nothing says which inputs {type(module).__name__} takes: give input_shape, the shape "
            "of one of them, e.g. 3,32,32."
        )
    return torch.zeros(_BATCH, *shape, dtype=dtype)


def _index_if_any(folder: Path) -> PersonalIndex | None:
    return read_index(folder) if (folder / PERSONAL_MODELS / PERSONAL_INDEX).exists() else None


def _checkpoint(folder: Path, index: PersonalIndex | None, given: Any) -> Path:
    """Return the checkpoint with the global model that a run's personal models go with."""
    if given is not None:
        return checkpoint_at(given)
    if index is not None and index.about.checkpoint is not None:
        path = folder / index.about.checkpoint
        if path.is_file():
            return Path(os.path.normpath(path))
        raise CheckpointError(
            f"{path}, which the personal models in {folder} were made from, is gone: give its new "
            "place with ckpt_path."
        )
    if (folder / CHECKPOINTS).is_dir():
        return good_checkpoint(folder / CHECKPOINTS)
    raise CheckpointError(f"{folder} has no checkpoints: give one with ckpt_path.")


def _compare(index: PersonalIndex, checkpoint: dict[str, Any], path: Path, client: int) -> None:
    """Refuse a personal part that was fine-tuned from another global model."""
    tensors = {k: v for k, v in checkpoint["state_dict"].items() if isinstance(v, Tensor)}
    if state_digest(tensors) == index.about.global_sha256:
        return
    raise CheckpointError(
        f"the part of client {client} in {index.folder} goes with another global model, of round "
        f"{index.about.round}, than {path} holds: give that round's checkpoint with ckpt_path, or "
        "make the client's model anew with `personalize`."
    )
