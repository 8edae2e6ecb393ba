"""`FederatedTrainer.personalize`: whose models are made, and by which callback."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import pytorch_lightning as pl

from fedlightning.datamodules import FederatedDataModule
from fedlightning.engine._lightning.evaluation_loop import PersonalizationLoop
from fedlightning.engine._lightning.trainer_hooks import personalization_loop
from fedlightning.engine.loop import FederatedLoop
from fedlightning.errors import ConfigError

__all__ = ["ChosenClients", "chosen_clients", "personalizing"]

ChosenClients = Sequence[int] | int | str | None
_ITEM = re.compile(r"(\d+)(?:-(\d+))?")
_MOST = 1_000_000


def chosen_clients(given: ChosenClients) -> list[int] | None:
    """Return client ids in ascending order, each once; None for no choice.

    Args:
        given: One id, several, or a text with ids and ranges of ids.

    Raises:
        ConfigError: It is something else.

    Example:
        >>> chosen_clients("3,7,10-12"), chosen_clients([7, 3, 7]), chosen_clients(None)
        ([3, 7, 10, 11, 12], [3, 7], None)
    """
    if given is None:
        return None
    items: Any = given
    if isinstance(given, str):
        items = re.split(r"\s*,\s*", given.strip().removeprefix("[").removesuffix("]").strip())
    chosen: set[int] = set()
    for item in items if isinstance(items, Sequence) else [items]:
        found = _ITEM.fullmatch(str(item))
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (0, -1)
        if isinstance(item, bool) or not 0 <= last - first < _MOST:
            raise ConfigError(
                f"clients must be ids or ranges of ids, such as 3,7,10-19, got {item!r}."
            )
        chosen.update(range(first, last + 1))
    if not chosen:
        raise ConfigError("clients is empty: leave it out to personalise all.")
    return sorted(chosen)


@contextmanager
def personalizing(
    trainer: Any, data: Any, clients: ChosenClients, callback: Callable[[], pl.Callback]
) -> Iterator[None]:
    """Have ``trainer.test`` personalise some clients and do nothing else, in the ``with`` block.

    Args:
        trainer: A FederatedTrainer.
        data: Its data.
        clients: Which clients; None means those that the data evaluate.
        callback: Makes the callback that personalizes, for a trainer that has none of its class.

    Raises:
        ConfigError: There are no such clients.
    """
    loop = trainer.fit_loop
    assert isinstance(loop, FederatedLoop)
    evaluation = partial(
        PersonalizationLoop,
        trainer,
        evaluator=loop.evaluator,
    )
    callbacks: list[pl.Callback] = trainer.callbacks
    default = callback()
    own = [] if any(isinstance(other, type(default)) for other in callbacks) else [default]
    chosen = chosen_clients(clients)
    given = chosen is not None and isinstance(data, FederatedDataModule)
    evaluating = data.evaluating(chosen) if given else nullcontext()
    with evaluating, personalization_loop(trainer, evaluation):
        callbacks.extend(own)
        trainer.personalizes = True
        try:
            yield
        finally:
            trainer.personalizes = False
            for added in own:
                callbacks.remove(added)
