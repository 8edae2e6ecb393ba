"""`FederatedTrainer.personalize`: whose models are made, and by which callback."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import pytorch_lightning as pl

from fedlightning.core.client_names import resolve_clients
from fedlightning.datamodules import FederatedDataModule
from fedlightning.engine._lightning.evaluation_loop import PersonalizationLoop
from fedlightning.engine._lightning.trainer_hooks import personalization_loop
from fedlightning.engine.loop import FederatedLoop
from fedlightning.errors import ConfigError

__all__ = ["ChosenClients", "chosen_clients", "client_words", "given_clients", "personalizing"]

ChosenClients = Sequence[int | str] | int | str | None


def client_words(text: str | Sequence[str]) -> list[str]:
    """Return the names, ids and ranges of ids in a list, as a command line has it, or as they are.

    Example:
        >>> client_words("charite, mayo"), client_words("[3,7-9]")
        (['charite', 'mayo'], ['3', '7-9'])
        >>> client_words('"Smith, Jones",mayo')
        ['Smith, Jones', 'mayo']
    """
    if not isinstance(text, str):
        return list(text)
    text = text.strip()
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1]
    (words,) = csv.reader([text], skipinitialspace=True) if text else ([""],)
    return [word.strip() for word in words]


def chosen_clients(
    given: ChosenClients, names: Sequence[str] | None = None, option: str = "clients"
) -> list[int] | None:
    """Return client ids in ascending order, each once; None for no choice.

    Args:
        given: One id or name, several, or a text with names, ids and ranges of ids.
        names: The clients' names, if they have any.
        option: What the user has set, for messages.

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
        items = [given] if names is not None and given in names else client_words(given)
    several = items if isinstance(items, Sequence) else [items]
    if not several:
        raise ConfigError(f"{option} is empty: leave it out to personalise all.")
    return resolve_clients(several, names, option)


def given_clients(given: Any) -> str | list[str]:
    """Return what a command line or a config says: a text, which may be one name, or a list."""
    return given if isinstance(given, str) else client_words(given)


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
    names = data.client_names if isinstance(data, FederatedDataModule) else None
    chosen = chosen_clients(clients, names)
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
