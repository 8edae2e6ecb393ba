"""Which personal models a run saves, and what its clients have kept when it starts from a file."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor

from fedlightning.core.seeding import Key, forked_generators
from fedlightning.core.state import State, live_state
from fedlightning.datamodules import Split
from fedlightning.engine._lightning.round_loop import Phase
from fedlightning.engine.loop import FederatedLoop
from fedlightning.personalization.models.writer import About, PersonalWriter, state_digest
from fedlightning.storage.client_store import holds_states

__all__ = [
    "MOST_BYTES",
    "MOST_CLIENTS",
    "discarded_on_failure",
    "load_kept",
    "open_personal_files",
    "write_one",
]

MOST_CLIENTS = 1_000
"""More clients' files are written only on request."""
MOST_BYTES = 2**30
"""The same for what the files take together."""


def open_personal_files(
    loop: FederatedLoop,
    clients: Sequence[int],
    part: str,
    rounds: int | None,
    wanted: bool | None,
) -> PersonalWriter | None:
    """Return what writes the clients' files of one personalization; all workers must ask.

    Args:
        loop: The loop, whose module is the global model.
        clients: Who is personalised.
        part: What is fine-tuned.
        rounds: How many rounds the checkpoint holds that the model was loaded from, if it was.
        wanted: Whether files are wanted; ``None`` means if they are few and small.

    Returns:
        None if there are to be no files; a warning says why.
    """
    trainer = loop.trainer
    folder = trainer.log_dir  # asks rank 0
    if folder is None:
        return None
    state = live_state(loop.module)
    if wanted is None and not getattr(trainer, "personalizes", False):
        keys = loop.parts_for(part).keys(part)
        size = sum(state[key].numel() * state[key].element_size() for key in keys) * len(clients)
        if len(clients) > MOST_CLIENTS or size > MOST_BYTES:
            rank_zero_warn(
                f"the personal models of {len(clients):,} clients, {size / 1e6:,.0f} MB, are not "
                "saved: save_personal=True of the PersonalizationCallback, or `personalize` for "
                "some of them, saves them."
            )
            return None
    about = _about(loop, Path(folder), clients, part, rounds)
    writer = PersonalWriter(Path(folder), about, loop.workers, loop.data.client_names)
    writer.open()
    return writer


def write_one(
    loop: FederatedLoop, folder: Path, client: int, part: str, state: State, rounds: int
) -> None:
    """Write the files of a personalization whose only client is here.

    Args:
        loop: The loop.
        folder: Gets ``personalized``, in the place of a former one.
        client: Client id.
        part: What was fine-tuned.
        state: What the client does not share with the global model.
        rounds: How many rounds the global model has behind it.
    """
    with loop.showing_global():
        about = _about(loop, folder, [client], part, rounds)
    writer = PersonalWriter(folder, about, names=loop.data.client_names)
    writer.open()
    with discarded_on_failure(writer):
        writer.keep(client, state)
        writer.publish()


def _about(
    loop: FederatedLoop, folder: Path, clients: Sequence[int], part: str, rounds: int | None
) -> About:
    shape, dtype = _input(loop, clients)
    return About(
        round=_last_round(loop, rounds),
        part=part,
        global_sha256=state_digest(live_state(loop.module)),
        checkpoint=_checkpoint(loop, folder),
        input_shape=shape,
        input_dtype=dtype,
    )


@contextmanager
def discarded_on_failure(files: PersonalWriter | None) -> Iterator[None]:
    """Remove what was written so far if the ``with`` block fails."""
    try:
        yield
    except BaseException:
        if files is not None:
            files.discard()
        raise


def load_kept(loop: FederatedLoop, saved: Mapping[str, Any]) -> None:
    """Load the client states of a checkpoint, if its run had the same data.

    With other data a client's number means another client, which has no state.

    Args:
        loop: The loop.
        saved: The loop's part of the checkpoint.
    """
    personal, settings = saved.get("personal"), saved.get("settings", {})
    if personal is None:
        return
    if holds_states(personal):
        present = loop.data.digests()
        if any(settings.get(name, value) != value for name, value in present.items()):
            rank_zero_warn(
                "the data differs from the checkpoint's run: its client states are ignored and all "
                "clients start from the global model."
            )
            return
    loop.load_personal(personal)


def _last_round(loop: FederatedLoop, loaded: int | None) -> int:
    """Return the last round that the module has behind it, -1 if it has none."""
    if loaded is not None:
        return loaded - 1
    return loop.round - (loop.phase is Phase.FINISHED)


def _checkpoint(loop: FederatedLoop, run: Path) -> str | None:
    """Return where the module came from, seen from the run folder if there is a way."""
    path = loop.trainer.ckpt_path
    if path is None or loop.trainer.state.fn == TrainerFn.FITTING:
        return None
    try:
        return os.path.relpath(Path(path).resolve(), run.resolve())
    except ValueError:  # on another drive
        return str(Path(path).resolve())


def _input(
    loop: FederatedLoop, clients: Sequence[int]
) -> tuple[tuple[int, ...] | None, str | None]:
    """Return shape and dtype of one input of the model, where that is a tensor."""
    splits: tuple[Split, ...] = ("test", "train")
    for client in clients:
        for split in splits:
            if not loop.data.num_examples(client, split):
                continue
            with forked_generators(Key(loop.seed, "evaluate"), loop.trainer.strategy.root_device):
                batch = next(iter(loop.evaluator.batches(client, split)), None)
            first = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
            if isinstance(first, Tensor):
                return tuple(first.shape[1:]), str(first.dtype).removeprefix("torch.")
            return None, None
    return None, None
